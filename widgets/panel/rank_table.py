"""The newest state of every rank, in arrays: the content of the Ranks tab."""

from __future__ import annotations

import math

import numpy as np

from workbench.core.columns import Columns
from workbench.telemetry.throttle import throttle_reasons

#: from best to worst: the state of a run is the worst state of its ranks
STATES = ("finished", "starting", "running", "paused", "restarting", "stopped", "failed", "died")


class RankTable:
    """The newest state of each of ``ranks`` ranks. The arrays have one element per rank.

    ``state``: place in ``STATES``; ``busy``: percent; ``memory``: bytes; ``gpu``: whether these two are of a GPU;
    ``throttle``: NVML's bit mask; ``lag``: work time relative to the median (0.1: 10 % more), None when unknown.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.state = np.full(ranks, STATES.index("starting"))
        self.step = np.zeros(ranks)
        self.busy = np.full(ranks, math.nan)
        self.memory = np.full(ranks, math.nan)
        self.gpu = np.zeros(ranks, dtype=bool)
        self.phase = np.full(ranks, "", dtype=object)
        self.device = np.full(ranks, "cpu", dtype=object)
        self.throttle = np.zeros(ranks, dtype=np.int64)
        self.lag: np.ndarray | None = None

    def take_devices(self, devices: Columns) -> None:
        """Take the newest sample of each rank from rows of the ``devices`` table."""
        rank = devices["rank"]
        newest = np.full(self.ranks, -1)
        known = np.flatnonzero((rank >= 0) & (rank < self.ranks))
        newest[rank[known]] = known  # the last row of each rank wins
        own = np.flatnonzero(newest >= 0)
        row = newest[own]
        gpu = devices["device"][row] != "cpu"
        self.step[own] = np.maximum(self.step[own], devices["step"][row])
        self.phase[own], self.device[own], self.gpu[own] = devices["phase"][row], devices["device"][row], gpu
        self.throttle[own] = devices["gpu_throttle"][row]
        self.busy[own] = np.where(gpu, devices["gpu_percent"][row], devices["cpu_percent"][row])
        self.memory[own] = np.where(gpu, devices["gpu_memory_bytes"][row], devices["rss_bytes"][row])

    def take_state(self, rank: int, state: str, step: int) -> None:
        """Set the state of a rank. A rank that died keeps that state."""
        if 0 <= rank < self.ranks and state in STATES and self.state[rank] != STATES.index("died"):
            self.state[rank] = STATES.index(state)
            self.step[rank] = max(self.step[rank], step)

    def state_of(self, rank: int) -> str:
        """Return the state of one rank."""
        return STATES[self.state[rank]]

    @property
    def logged_state(self) -> str:
        """State of the run as its ranks logged it: the worst of them."""
        worst = int(self.state.max())
        if STATES[worst] == "died":
            return "failed"
        if STATES[worst] == "starting" and (self.state == STATES.index("finished")).any():
            return "running"
        return STATES[worst]

    def counts(self) -> dict[str, int]:
        """Return state -> number of ranks, without states that no rank has."""
        number = np.bincount(self.state, minlength=len(STATES))
        return {name: int(count) for name, count in zip(STATES, number, strict=True) if count}

    def columns(self) -> Columns:
        """Return a row per rank: rank, state, step, busy, memory (GiB), gpu, phase, device, throttle, lag (percent)."""
        slowed_by = {mask: ", ".join(throttle_reasons(mask)) for mask in set(self.throttle.tolist())}
        return {
            "rank": np.arange(self.ranks, dtype=float),
            "state": self.state.astype(float),
            "step": self.step,
            "busy": np.rint(self.busy),
            "memory": np.round(self.memory / 2**30, 2),
            "gpu": self.gpu.astype(float),
            "phase": self.phase,
            "device": self.device,
            "throttle": np.array([slowed_by[mask] for mask in self.throttle.tolist()], dtype=object),
            "lag": np.full(self.ranks, math.nan) if self.lag is None else np.rint(100 * self.lag),
        }

"""The newest state of every rank, in arrays: what the Ranks tab lists, for 2 ranks as for 1,024."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.telemetry.throttle import throttle_reasons

#: worst last: a state that is read later in this list is the one a run is called by
STATES = ("finished", "starting", "running", "paused", "stopped", "failed", "died")


class RankTable:
    """``take_devices``, ``take_state`` and ``columns`` (rank, state, step, busy, memory, gpu, phase, device,
    throttle, lag)."""

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
        """The newest sample of each rank in these rows."""
        rank = devices["rank"]
        newest = np.full(self.ranks, -1)
        known = np.flatnonzero((rank >= 0) & (rank < self.ranks))
        newest[rank[known]] = known  # of rows of one rank the last one stays
        own = np.flatnonzero(newest >= 0)
        row = newest[own]
        gpu = devices["device"][row] != "cpu"
        self.step[own] = np.maximum(self.step[own], devices["step"][row])
        self.phase[own], self.device[own], self.gpu[own] = devices["phase"][row], devices["device"][row], gpu
        self.throttle[own] = devices["gpu_throttle"][row]
        self.busy[own] = np.where(gpu, devices["gpu_percent"][row], devices["cpu_percent"][row])
        self.memory[own] = np.where(gpu, devices["gpu_memory_bytes"][row], devices["rss_bytes"][row])

    def take_state(self, rank: int, state: str, step: int) -> None:
        """A rank said what it is doing; one that died says nothing more."""
        if 0 <= rank < self.ranks and state in STATES and self.state[rank] != STATES.index("died"):
            self.state[rank] = STATES.index(state)
            self.step[rank] = max(self.step[rank], step)

    def state_of(self, rank: int) -> str:
        """The state of one rank."""
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
        """How many ranks are in which state."""
        number = np.bincount(self.state, minlength=len(STATES))
        return {name: int(count) for name, count in zip(STATES, number, strict=True) if count}

    def columns(self) -> Columns:
        """A row per rank."""
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


def describe(table: RankTable) -> dict[str, Any]:
    """For the facts: how many ranks there are in which state."""
    return {"world": table.ranks, "states": table.counts()}

"""What the panel says in words and numbers: facts of a run, kept up to date from its store."""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Any

import numpy as np

from workbench.outcome import failure_of
from workbench.plots.rows import StepCursor, metrics_since
from workbench.run import ENDED
from workbench.telemetry.store import Columns, Store

RECENT_STEPS = 50
LONGEST_TEXT = 1200
MOST_RANK_TILES = 64


class Facts:
    """Reads a store's news into one small dictionary of JSON values (``now``). Numbers that are unknown are None."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._metrics: StepCursor | None = None
        self._events = 0
        self._devices = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._latest: dict[str, float] = {}
        self._ranks: dict[int, dict[str, Any]] = {}
        self._known: dict[str, Any] = {"validation": None, "accuracy": None, "sample": None, "notice": None}
        self._began: float | None = None
        self._ended: float | None = None
        self._failure: str | None = None

    def update(self) -> None:
        """Take in what the store has read since the last call."""
        self._take_metrics()
        devices, self._devices = self._store.since("devices", self._devices)
        self._take_devices(devices)
        events, self._events = self._store.since("events", self._events)
        for index in range(events["step"].size):
            self._take_event({name: values[index] for name, values in events.items()})
        if np.isin(events["name"], ("failed", "died")).any():
            first = failure_of(self._store.table("events"))
            self._failure = None if first is None else str(first)

    @property
    def logged_state(self) -> str:
        """State of the run as its ranks logged it: the worst of them."""
        states = {tile["state"] for tile in self._ranks.values()}
        for state in ("failed", "stopped", "running", "starting", "finished"):
            if state in states:
                return state
        return "starting"

    def now(self, *, status: str, can_stop: bool, asked: bool, clock: float) -> dict[str, Any]:
        """All facts at the time ``clock`` (seconds since the epoch) of a run whose state is ``status``."""
        spec = self._store.spec
        step = int(self._latest.get("step", 0))
        over = status in ENDED
        end = (self._ended or (self._recent[-1][1] if self._recent else None)) if over else clock
        elapsed = max(0.0, end - self._began) if self._began and end else None
        left = spec.steps - step
        pace = self._seconds_per_step()
        return {
            "name": self._store.run.name,
            "recipe": " ".join(filter(None, (spec.recipe or "own model", spec.size))),
            "plan": spec.plan.describe(),
            "precision": spec.precision,
            "status": status,
            "stop": "none" if not can_stop else "ended" if over else "asked" if asked else "ready",
            "step": step,
            "steps": spec.steps,
            "elapsed": elapsed,
            "eta": left * pace if pace is not None and left > 0 and not over else None,
            **{name: _number(self._latest.get(name)) for name in ("loss", "tps", "step_time_ms", "grad_norm", "lr")},
            **self._known,
            "failure": self._failure,
            "ranks": [self._ranks[rank] for rank in sorted(self._ranks)][:MOST_RANK_TILES],
            "world": spec.plan.ranks,
        }

    def _take_metrics(self) -> None:
        metrics, self._metrics = metrics_since(self._store, self._metrics)
        size = metrics["step"].size
        if not size:
            return
        for index in range(max(0, size - RECENT_STEPS), size):
            self._recent.append((int(metrics["step"][index]), float(metrics["time"][index])))
        self._latest = {name: float(values[-1]) for name, values in metrics.items()}

    def _take_devices(self, devices: Columns) -> None:
        last = {int(rank): index for index, rank in enumerate(devices["rank"])}
        for rank, index in last.items():
            tile = self._tile(rank)
            tile["step"] = int(devices["step"][index])
            tile["phase"] = str(devices["phase"][index])
            tile["cpu"] = _number(devices["cpu_percent"][index])
            tile["rss"] = _number(devices["rss_bytes"][index])
            tile["device"] = str(devices["device"][index])
            tile["gpu"] = _number(devices["gpu_percent"][index])
            tile["gpu_memory"] = _number(devices["gpu_memory_bytes"][index])

    def _take_event(self, event: dict[str, Any]) -> None:
        kind, name, rank, step = event["kind"], event["name"], int(event["rank"]), int(event["step"])
        value = json.loads(event["value"])
        if kind == "state" and rank >= 0:
            self._take_state(rank, name, step, float(event["time"]), value)
        elif kind == "validation" and name in ("loss", "accuracy"):
            self._known["validation" if name == "loss" else name] = {"step": step, "value": _number(value)}
        elif kind == "sample":
            self._known["sample"] = {"step": step, "text": str(value)[:LONGEST_TEXT]}
        elif kind == "warning":
            self._known["notice"] = {"level": "warning", "text": str(value if value is not None else name)[:300]}
        elif kind == "rank" and name == "died" and isinstance(value, dict) and isinstance(value.get("rank"), int):
            self._tile(value["rank"])["state"] = "died"
            text = f"rank {value['rank']} died: {value.get('reason', 'no reason known')}"
            self._known["notice"] = {"level": "error", "text": text[:300]}

    def _take_state(self, rank: int, state: str, step: int, time: float, value: Any) -> None:
        tile = self._tile(rank)
        if tile["state"] != "died":
            tile["state"] = state
        if state == "running" and self._began is None:
            self._began = time
        if state in ENDED:
            self._ended = max(time, self._ended or time)
            tile["step"] = max(tile["step"], step)
        if state == "failed" and isinstance(value, dict) and not self._known["notice"]:
            text = f"rank {rank}: {value.get('ename', 'error')}: {value.get('evalue', '')}"
            self._known["notice"] = {"level": "error", "text": text[:300]}

    def _tile(self, rank: int) -> dict[str, Any]:
        blank = {"rank": rank, "state": "starting", "step": 0, "phase": "", "cpu": None, "rss": None, "device": "cpu"}
        return self._ranks.setdefault(rank, {**blank, "gpu": None, "gpu_memory": None})

    def _seconds_per_step(self) -> float | None:
        if len(self._recent) < 2:
            return None
        (first, began), (last, ended) = self._recent[0], self._recent[-1]
        return (ended - began) / (last - first) if last > first else None


def _number(value: Any) -> float | None:
    """A finite number for JSON, else None."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None

"""The facts of a run that the panel shows in words and numbers, kept up to date from the run's store."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from widgets.panel.control_set import current_value_words
from widgets.panel.rank_table import RankTable
from widgets.panel.verdict import SpeedVerdict, VerdictTracker
from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.numbers import metric_words
from workbench.core.records import EventKind
from workbench.events.alerts import active, alerts_of
from workbench.events.decode import as_number, decode, is_rank
from workbench.events.epochs import EpochProgress
from workbench.events.outcome import failure_of
from workbench.events.settings import CurrentSettings
from workbench.events.words import words
from workbench.rundir.lineage import Branches, origin
from workbench.rundir.state import ENDED, is_owned_here
from workbench.telemetry import row_views as rows
from workbench.telemetry.derive import seconds_per_step
from workbench.telemetry.pauses import Pauses
from workbench.telemetry.row_views import StepCursor, metrics_since
from workbench.telemetry.store import Store

RECENT_STEPS = 50
LONGEST_TEXT = 4000
LONGEST_TRACE = 20_000
MOST_SAMPLES = 20
#: seconds between two verdicts
JUDGE_EVERY_S = 3.0
_NUMBERS = ("loss", "tps", "step_time_ms", "grad_norm")


class Facts:
    """Collects the facts of a run from its store. ``now`` returns them as JSON values; unknown numbers are None."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._metrics: StepCursor | None = None
        self._events = 0
        self._devices = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._latest: dict[str, float] = {}
        self._known: dict[str, Any] = {"validation": None, "metric": None, "notice": None, "failure": None}
        self._stall: dict[str, str] | None = None
        self._pauses = Pauses()
        self._epochs = EpochProgress()
        self._first_event: float | None = None
        self._known |= {"own": is_owned_here(store.run), "saved": None}
        self._began: float | None = None
        self._ended: float | None = None
        self._judge = VerdictTracker(store)
        self._judged: SpeedVerdict = SpeedVerdict()
        self._judged_at = -math.inf
        self._settings_now = CurrentSettings()
        self._alerts: list[str] = []
        self._alert_rows = (-1, -1)
        self._branches = Branches(store.run, store.spec.plan)
        self._origin = origin(store.spec)
        self._asked_to_branch = False
        self.ranks = RankTable(store.spec.plan.ranks)
        self.samples: deque[dict[str, Any]] = deque(maxlen=MOST_SAMPLES)

    def update(self, clock: float | None = None) -> Columns:
        """Take what the store has read since the last call, and return the new events.

        ``clock``: monotonic time in seconds; None: make a new verdict in any case.
        """
        self._take_metrics()
        self._take_alerts()
        devices, self._devices = rows.since(self._store, "devices", self._devices)
        if devices["rank"].size:
            self.ranks.take_devices(devices)
        events, self._events = rows.since(self._store, "events", self._events)
        if self._first_event is None and events["time"].size:
            self._first_event = float(events["time"].min())
        self._pauses.take(events)
        self._epochs.take(events)
        self._settings_now.take(events)
        if self._recent:
            self._settings_now.take_lr(self._latest["lr"], self._recent[-1][1])
        for index in range(events["step"].size):
            self._take_event({name: values[index] for name, values in events.items()})
        if np.isin(events["name"], ("failed", "died")).any():
            self._take_failure()
        if clock is None or clock - self._judged_at >= JUDGE_EVERY_S:
            self._judged_at = clock if clock is not None else self._judged_at
            tps = _number(self._latest.get("tps"))
            self._branches.look()
            self._judged = self._judge.judge(None if tps is None else tps * self.ranks.ranks)
            self.ranks.lag = self._judged.lag
        return events

    def rolled_back(self) -> None:
        """Discard everything about steps after a rollback; ``update`` reads it again."""
        self._metrics = None
        self._recent.clear()
        self._judge = VerdictTracker(self._store)
        self._judged_at = -math.inf

    @property
    def logged_state(self) -> str:
        """The state of the run according to the ranks' logs: the worst state of a rank."""
        return self.ranks.logged_state

    @property
    def began(self) -> float:
        """The begin of the run in seconds since the epoch: its first device sample, else its first event."""
        begin = rows.progress(self._store).begin
        return (self._first_event or 0.0) if math.isnan(begin) else begin

    def now(self, *, status: str, can_control: bool, clock: float) -> dict[str, Any]:
        """Return all facts at ``clock`` (seconds since the epoch). ``status``: the state of the run."""
        spec = self._store.spec
        step = int(self._latest.get("step", 0))
        over = status in ENDED
        end = (self._ended or (self._recent[-1][1] if self._recent else None)) if over else clock
        elapsed = max(0.0, end - self._began - float(self._pauses.before(end))) if self._began and end else None
        steps = self._epochs.last_step(spec.steps)
        left = steps - step
        pace = self._seconds_per_step()
        return {
            "name": self._store.run.name,
            "lineage": " · ".join(filter(None, (self._origin, self._branches.words()))),
            "recipe": " ".join(filter(None, (spec.recipe or "own model", spec.size))),
            "plan": spec.plan.describe(),
            "precision": spec.precision,
            "status": status,
            "controls": "none" if not can_control else "ended" if over else "ready",
            "step": step,
            "steps": steps,
            "epoch": self._epochs.words(step),
            "share": self._epochs.fraction(step, spec.steps),
            "elapsed": None if elapsed is None else round(elapsed),
            "eta": round(left * pace) if pace is not None and left > 0 and not over and status != "paused" else None,
            **{name: _number(self._latest.get(name)) for name in _NUMBERS},
            "lr": _number(self._settings_now.values.get("lr", self._latest.get("lr"))),
            "in_force": current_value_words(self._settings_now.values),
            **self._known,
            "alerts": self._alerts,
            "verdict": self._judged.sentence,
            "straggler": self._judged.straggler,
            "mfu": _number(self._judged.mfu),
            "world": self.ranks.ranks,
            "unit": rows.unit(self._store),
            "states": self.ranks.counts(),
        }

    @property
    def awaits_branch(self) -> bool:
        """Whether the ranks stopped for a branch that has no run directory yet."""
        return self._asked_to_branch and not self._branches.found

    def _take_metrics(self) -> None:
        metrics, self._metrics = metrics_since(self._store, self._metrics)
        size = metrics["step"].size
        if not size:
            return
        for index in range(max(0, size - RECENT_STEPS), size):
            self._recent.append((int(metrics["step"][index]), float(metrics["time"][index])))
        self._latest = {name: float(values[-1]) for name, values in metrics.items()}

    def _take_alerts(self) -> None:
        """Read again which alerts are on when there are new events, or when a rollback took some back."""
        rows_read = (self._store.rows("events"), len(self._store.rollbacks.known))
        if rows_read != self._alert_rows:
            self._alert_rows = rows_read
            told, _ = rows.told_since(self._store, 0)
            self._alerts = [f"step {alert.step}: {alert.sentence()}" for alert in active(alerts_of(told))]

    def _take_event(self, event: dict[str, Any]) -> None:
        kind, name, rank, step = event["kind"], event["name"], int(event["rank"]), int(event["step"])
        if kind == EventKind.STATE and rank >= 0:
            self._take_state(rank, name, step, float(event["time"]), decode(event["value"]))
        elif kind == EventKind.VALIDATION and name == "loss":
            self._known["validation"] = {"step": step, "value": _number(decode(event["value"]))}
        elif kind == EventKind.VALIDATION and (value := _number(decode(event["value"]))) is not None:
            self._take_metric(name, value)
        elif kind == EventKind.SAMPLE:
            self.samples.append({"step": step, "text": str(decode(event["value"]))[:LONGEST_TEXT]})
        elif kind == EventKind.CHECKPOINT and name == "saved":
            self._known["saved"] = step
        elif kind == EventKind.CONTROL and any(c.name == name and c.starts_run for c in controls.CONTROLS):
            self._asked_to_branch = True
        elif (kind == EventKind.WARNING and not self._known["failure"]) or (
            kind == EventKind.RANK and name == "restart"
        ):
            self._known["notice"] = {"level": "warning", "text": words(kind, name, decode(event["value"]))}
        elif kind == EventKind.RANK and name == "died":
            self._take_death(decode(event["value"]))
        elif kind == EventKind.RANK and not self._known["failure"]:
            self._take_stall(name, decode(event["value"]))

    def _take_metric(self, name: str, value: float) -> None:
        """Keep the value of the first metric that came: there is room for one."""
        known = self._known["metric"]
        if known is None or known["name"] == name:
            self._known["metric"] = {"name": name, "text": metric_words(name, value)}

    def _take_stall(self, name: str, value: Any) -> None:
        """Keep why the ranks do not go on for as long as they do not."""
        if name == "stalled":
            self._known["notice"] = self._stall = {"level": "warning", "text": words(EventKind.RANK, name, value)}
        elif name == "moving" and self._known["notice"] is self._stall:
            self._known["notice"] = None

    def _take_death(self, value: Any) -> None:
        if isinstance(value, dict) and is_rank(value.get("rank")):
            self.ranks.take_state(value["rank"], "died", 0)  # its step is that of its last sample

    def _take_state(self, rank: int, state: str, step: int, time: float, value: Any) -> None:
        self.ranks.take_state(rank, state, step)
        if state == "running" and self._began is None:
            self._began = time
        if state == "finished" and isinstance(value, str) and not self._known["failure"]:
            self._known["notice"] = {"level": "info", "text": f"ended early: {value}"}
        if state in ENDED:
            self._ended = max(time, self._ended or time)

    def _take_failure(self) -> None:
        """Take the failure that caused the others: the ranks that had it, its message and its traceback."""
        first = failure_of(self._store.table("events"))
        if first is None:
            return
        trace = first.traceback[-LONGEST_TRACE:]
        self._known["failure"] = {"who": first.who, "error": first.message[:1000], "traceback": trace}
        self._known["notice"] = {"level": "error", "text": f"{first.who}: {first.message[:1000]}"}

    def _seconds_per_step(self) -> float | None:
        step, time = np.array(self._recent, dtype=float).reshape(-1, 2).T
        pace = seconds_per_step(step, time - self._pauses.before(time), RECENT_STEPS)
        return None if math.isnan(pace) else pace


def _number(value: Any) -> float | None:
    """Return a finite number with six significant digits, for JSON; None for anything else."""
    number = as_number(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None

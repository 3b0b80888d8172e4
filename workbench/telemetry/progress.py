"""How far a run is, in numbers and in one line: for the panel's tiles, terminals and plain IPython."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.events.decode import as_number
from workbench.events.epochs import EpochProgress
from workbench.rundir.state import ENDED
from workbench.telemetry.derive import batch_of, global_metrics, seconds_per_step
from workbench.telemetry.pauses import Pauses
from workbench.telemetry.rollbacks import validated
from workbench.telemetry.store import Store

_RECENT_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment. ``steps``: its last one (0: not known); ``epoch``: in words, "" where none are counted;
    ``fraction``: the share that is done, 0 to 1. ``tps``: tokens (``unit``) per second per device over the last steps;
    NaN where nothing is known."""

    step: int
    steps: int
    loss: float
    validation_loss: float
    tps: float
    step_time_ms: float
    eta_s: float
    fraction: float
    epoch: str = ""
    unit: str = "tokens"


def snapshot(store: Store) -> Snapshot:
    """From what the store has read."""
    spec = store.spec
    metrics = global_metrics(store.table("steps"), store.mesh)
    recent = {name: values[-_RECENT_STEPS:] for name, values in metrics.items()}
    known = metrics["step"].size > 0
    # the first step compiles and allocates: leave it out as soon as there is another
    times = recent["step_time_ms"][1:] if metrics["step"].size in range(2, _RECENT_STEPS) else recent["step_time_ms"]
    step_time = float(np.mean(times)) if known else float("nan")
    tps = float(np.mean(recent["tps"][-times.size :])) if known else float("nan")
    step = int(metrics["step"][-1]) if known else 0
    paused = Pauses().take(store.table("events"))
    epochs = EpochProgress().take(store.table("events"))
    steps = epochs.last_step(spec.steps)
    pace = seconds_per_step(metrics["step"], metrics["time"] - paused.before(metrics["time"]))
    return Snapshot(
        step=step,
        steps=steps,
        epoch=epochs.words(step),
        fraction=epochs.fraction(step, spec.steps),
        loss=float(metrics["loss"][-1]) if known else float("nan"),
        validation_loss=last_value(store, "loss"),
        tps=tps,
        step_time_ms=step_time,
        eta_s=(steps - step) * (step_time / 1e3 if np.isnan(pace) else pace) if steps else float("nan"),
        unit=batch_of(store.table("events"))[1],
    )


def last_value(store: Store, name: str) -> float:
    """The newest validation value of that name; NaN when there is none."""
    values = [as_number(event.value) for event in validated(store.table("events"), name)]
    return values[-1] if values else float("nan")


def line(run_name: str, state: str, now: Snapshot) -> str:
    """One line for a terminal."""
    of = f"/{now.steps}" if now.steps else ""
    parts = [f"{run_name}: {state}, step {now.step}{of}"]
    if now.epoch:
        parts.append(now.epoch)
    if now.step:
        parts.append(f"loss {now.loss:.4f}")
        parts.append(f"{now.tps:,.0f} {now.unit}/s per rank")
    if np.isfinite(now.validation_loss):
        parts.append(f"validation {now.validation_loss:.4f}")
    if now.step and state not in ENDED:
        parts.append(f"{duration(now.eta_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``75`` -> ``"1:15"``; an hour or more: ``"1:02:03"``."""
    if not np.isfinite(seconds):
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

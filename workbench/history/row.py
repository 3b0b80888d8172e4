"""One run as a row of a list: what its directory says, in a dozen fields."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.mesh import Mesh
from workbench.core.records import columns_of
from workbench.errors import WorkbenchError, format_ranks
from workbench.events.epochs import EpochProgress
from workbench.history import labels as run_labels
from workbench.history import logs
from workbench.rundir import state
from workbench.rundir.directory import run_name
from workbench.telemetry.derive import global_metrics
from workbench.telemetry.row_views import validations

#: the state of a directory whose spec or logs cannot be read
BROKEN = "broken"
STEP_COLUMNS = tuple(columns_of("steps"))
EVENT_COLUMNS = ("time", "step", "rank", "kind", "name", "value")


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run. Numbers are None where the run has none.

    ``directory``: its name in the runs' home. ``when``: seconds since the epoch at which it began. ``steps`` of
    ``steps_planned`` (0: not known) were finished by all ranks; ``epoch``: in words, "" where none are
    counted. ``best_loss`` and ``best_validation``: the lowest training loss of a
    step, and the lowest validation loss. ``tps``: tokens per second per device, median over steps without the first.
    ``state``: of ``Run.status``, or ``broken``. ``problem``: what is wrong with the directory, in words.
    """

    directory: str
    name: str
    when: float
    recipe: str = ""
    plan: str = ""
    ranks: int = 0
    steps: int = 0
    steps_planned: int = 0
    epoch: str = ""
    best_loss: float | None = None
    best_validation: float | None = None
    tps: float | None = None
    state: str = BROKEN
    tags: tuple[str, ...] = ()
    notes: str = ""
    disk_bytes: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row for JSON."""
        return {**asdict(self), "tags": list(self.tags)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRow:
        """From ``to_json``; ``TypeError`` for other keys, ``KeyError`` without tags."""
        return cls(**{**data, "tags": tuple(data["tags"])})


def read_row(run: Path) -> RunRow:
    """Read a run directory once. Never raises for what is wrong with it: ``problem`` says it."""
    found = logs.read(run, {"steps": STEP_COLUMNS, "events": EVENT_COLUMNS})
    problems = list(found.problems)
    spec: TrainSpec | None = None
    try:
        spec = TrainSpec.from_options(read_spec_options(run / SPEC_FILE))
    except (WorkbenchError, TypeError) as error:
        problems.insert(0, str(error) if (run / SPEC_FILE).exists() else f"no {SPEC_FILE}")
    mesh = spec.plan.mesh if spec else Mesh(dp=max(found.ranks, default=0) + 1)
    steps, events = found.tables["steps"], found.tables["events"]
    logged = state.state_of(events, mesh.world_size)
    problems += _gaps(found, mesh, logged)
    broken = spec is None or bool(found.problems)
    labels = run_labels.read(run)
    metrics = global_metrics(steps, mesh)
    tps = metrics["tps"][1:] if metrics["tps"].size > 1 else metrics["tps"]
    step = int(metrics["step"][-1]) if metrics["step"].size else 0
    epochs = EpochProgress().take(events)
    return RunRow(
        directory=run.name,
        name=spec.name if spec else run_name(run),
        when=_begun(run, events),
        recipe=(spec.recipe or "cell") if spec else "",
        plan=spec.plan.describe() if spec else "",
        ranks=mesh.world_size,
        steps=step,
        steps_planned=epochs.last_step(spec.steps if spec else 0),
        epoch=epochs.words(step),
        best_loss=lowest(metrics["loss"]),
        best_validation=lowest(_validation(events)),
        tps=float(np.median(tps)) if tps.size and np.isfinite(np.median(tps)) else None,
        state=BROKEN if broken else logged,
        tags=labels.tags,
        notes=labels.note,
        disk_bytes=disk_use(run),
        problem="; ".join(problems),
    )


def lowest(values: np.ndarray) -> float | None:
    """The lowest finite value; None when there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.min()) if finite.size else None


def present_state(row: RunRow, run: Path) -> str:
    """The state of now: ``rundir.state.present_state``, or ``broken``."""
    return BROKEN if row.state == BROKEN else state.present_state(row.state, run)


def disk_use(run: Path) -> int:
    """Bytes on the disk of all files below ``run`` (links are not followed); what vanishes meanwhile counts nothing."""
    total, waiting = 0, [str(run)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    total += about.st_blocks * 512
                    if stat.S_ISDIR(about.st_mode):
                        waiting.append(entry.path)
        except OSError:
            continue  # removed or closed to us while we look: a list of runs goes on
    return total


def _gaps(found: logs.Logs, mesh: Mesh, state: str) -> list[str]:
    missing = sorted(set(range(mesh.world_size)) - set(found.ranks))
    # ranks of a run that starts come one after another
    said = missing and state != "starting"
    gaps = [f"no log of {format_ranks(missing)} of {mesh.world_size}"] if said else []
    if found.unfinished and state in ("finished", "stopped"):
        gaps.append(f"cut off: {', '.join(found.unfinished)}")
    return gaps


def _begun(run: Path, events: dict[str, np.ndarray]) -> float:
    if events["time"].size:
        return float(events["time"].min())
    for path in (run / SPEC_FILE, run):
        try:
            return path.stat().st_mtime
        except OSError:
            continue  # the next one may tell
    return math.nan


def _validation(events: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([value for _, value in validations(events, "loss")], dtype=float)

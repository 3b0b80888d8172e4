"""What is compared: a run of ours, or scalars that another program left in TensorBoard files."""

from __future__ import annotations

import hashlib
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core import algorithms
from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.records import columns_of
from workbench.errors import ConfigError, RunDirectoryError, suggest
from workbench.events.settings import hand_changes
from workbench.history import logs
from workbench.history.row import EVENT_COLUMNS, STEP_COLUMNS, present_state, read_row
from workbench.history.tensorboard_file import Series, event_files, read_scalars
from workbench.rundir import directory as run_directory
from workbench.rundir import environment
from workbench.rundir.directory import CELL_FILE
from workbench.rundir.state import find
from workbench.telemetry.derive import batch_of, cumulative_tokens, global_metrics
from workbench.telemetry.logged.curves import curves, one_per_name
from workbench.telemetry.rollbacks import without_taken_back
from workbench.telemetry.row_views import validations

#: what a curve can be drawn over
AXES = {
    "step": "step",
    "tokens": "tokens, all replicas",
    "time": "seconds of training",
    "bytes": "bytes sent, all ranks",
}
#: differs between any two runs and says nothing
_ALWAYS_OTHER = ("started",)
_LOSS_WORDS = ("loss", "train_loss", "training_loss", "loss/train", "train/loss")


#: curves of the cell's own that are compared
_MOST_LOGGED = 12


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One curve of a comparison and where it comes from.

    ``curve``: columns step, time (seconds of training), tokens (NaN where not known), loss, tps (tokens per second per
    device; NaN likewise), grad_norm (likewise), ``log/NAME`` for what the cell logged (NaN in steps without a value)
    and, where it was asked for, bytes. ``options``: the spec's, flat; empty for imported curves. ``environment``: what
    ``spec.toml`` says of versions, machine and code. ``validation``: steps and losses.
    """

    label: str
    path: Path
    origin: str
    state: str
    ranks: int
    curve: Columns
    validation: tuple[np.ndarray, np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    #: setting or knob -> its changes by hand, in words
    changed: dict[str, str] = field(default_factory=dict)
    cell: str = ""
    plan: str = ""
    counts: str = "tokens"  # what tps counts: tokens or samples
    problem: str = ""  # what is wrong with its directory

    def axis(self, name: str) -> np.ndarray:
        """Values of an axis per row of the curve; ``ConfigError`` where this run does not know them."""
        values = self.curve[name] if name in self.curve else np.full(self.curve["step"].size, math.nan)
        if values.size and not np.isfinite(values).any():
            raise ConfigError(
                f"{self.label} has no record of {AXES[name]}: compare over --x step or --x time", field="--x"
            )
        return values


def load(name: str | Path, *, x: str = "step", tag: str = "") -> ComparedRun:
    """A run by name or path, or TensorBoard files by path (``tag``: which scalar is the loss; default: by its name).

    Raises ``RunDirectoryError`` when there is neither, ``ConfigError`` for a tag that is not there.
    """
    path = Path(name).expanduser()
    try:
        run = find(name)
    except RunDirectoryError:
        if not path.exists():
            raise
        return from_tensorboard(path, tag)
    return from_run(run, x=x)


def from_run(run: Path, *, x: str = "step") -> ComparedRun:
    """A run directory. ``ConfigError`` when its spec cannot be read: then nothing about its numbers is certain."""
    spec = TrainSpec.from_options(read_spec_options(run / SPEC_FILE))
    wanted: dict[str, Any] = {"steps": STEP_COLUMNS, "events": EVENT_COLUMNS, "values": tuple(columns_of("values"))}
    if x == "bytes":
        wanted |= {"collectives": ("step", "rank", "bytes"), "devices": ("time", "rank", "net_sent_bytes")}
    found = logs.read(run, wanted)
    mesh = spec.plan.mesh
    metrics = global_metrics(found.tables["steps"], mesh)
    cell = run / CELL_FILE
    row = read_row(run)
    compared = from_logs(
        run,
        metrics,
        found.tables["events"],
        label=run_directory.run_name(run),
        state=present_state(row, run),
        ranks=mesh.world_size,
        spec=spec,
        cell=cell.read_text(encoding="utf-8", errors="replace") if cell.exists() else "",
        problem=row.problem,
        logged=without_taken_back("values", found.tables["values"], found.tables["events"]),
    )
    if x == "bytes":
        compared.curve["bytes"] = _bytes(metrics, found.tables, algorithms.steps_alone_after(spec.plan.algorithm))
    return compared


def from_logs(
    run: Path,
    metrics: Columns,
    events: Columns,
    *,
    label: str,
    state: str,
    ranks: int,
    spec: TrainSpec | None,
    cell: str,
    problem: str,
    logged: Columns | None = None,
) -> ComparedRun:
    """A run whose logs are read: ``metrics`` as ``global_metrics`` gives them, and the tables ``events`` and ``values``
    (``logged``, without what rollbacks took back). Without a
    ``spec`` its options are not known, and it is a repeat of nothing."""
    return ComparedRun(
        label=label,
        path=run,
        origin="run",
        state=state,
        ranks=ranks,
        curve=_curve(metrics, ranks) | _logged(metrics["step"], logged, spec),
        validation=_validation(events),
        options=spec.options() if spec else {},
        environment=_environment(run),
        changed=hand_changes(events),
        cell=cell,
        plan=spec.plan.describe() if spec else "",
        counts=batch_of(events)[1],
        problem=problem,
    )


def _curve(metrics: Columns, ranks: int) -> Columns:
    size = metrics["step"].size
    begun = metrics["time"][0] - metrics["step_time_ms"][0] / 1e3 if size else 0.0
    tokens = cumulative_tokens(metrics, ranks)
    return {
        "step": metrics["step"].astype(float),
        "time": metrics["time"] - begun,
        "tokens": tokens,
        "loss": metrics["loss"],
        "tps": metrics["tps"],
        "grad_norm": metrics["grad_norm"],
    }


def _logged(steps: np.ndarray, rows: Columns | None, spec: TrainSpec | None) -> Columns:
    """``log/NAME`` -> values at ``steps``, of the first names that the cell logged; the mean where each rank has its
    own."""
    if rows is None or spec is None:
        return {}
    out: Columns = {}
    for curve in one_per_name(curves(rows, spec.plan.mesh))[:_MOST_LOGGED]:
        column = out[f"log/{curve.label}"] = np.full(steps.size, math.nan)
        known = np.isin(curve.steps, steps)
        column[np.searchsorted(steps, curve.steps[known])] = curve.values[known]
    return out


def _bytes(metrics: Columns, tables: dict[str, Columns], alone_after: float) -> np.ndarray:
    """Bytes that all ranks gave to collectives, cumulated; without such a log, what the host's network sent.

    Steps whose collectives were not logged count as the median of those that were: a first step sends more. Where ranks
    step by themselves, ``alone_after`` a step, all steps in which they exchange weights were logged, and nothing is
    sent in the others.
    """
    collectives = tables["collectives"]
    steps = metrics["step"]
    if collectives["step"].size and steps.size:
        numbers, index = np.unique(collectives["step"], return_inverse=True)
        totals = np.bincount(index, weights=collectives["bytes"])
        together = totals[numbers <= alone_after]
        per_step = np.where(steps <= alone_after, np.median(together) if together.size else math.nan, 0.0)
        place = np.searchsorted(steps, numbers)
        known = (place < steps.size) & (steps[np.minimum(place, steps.size - 1)] == numbers)
        per_step[place[known]] = totals[known]
        return np.cumsum(per_step)
    devices = tables["devices"]
    first = devices["rank"] == 0
    if first.sum() < 2:
        return np.full(steps.size, math.nan)
    sent = devices["net_sent_bytes"][first].astype(float)
    return np.interp(metrics["time"], devices["time"][first], sent - sent[0])


def _validation(events: Columns) -> tuple[np.ndarray, np.ndarray]:
    found = {int(step): value for step, value in validations(events, "loss")}
    steps = sorted(found)
    return np.array(steps, dtype=float), np.array([found[step] for step in steps], dtype=float)


def _environment(run: Path) -> dict[str, Any]:
    """What the run says of versions, machine and code, flat as ``table.key``: of ``spec.toml``'s tables for people, and
    of ``environment.json``."""
    try:
        data: dict[str, Any] = tomllib.loads((run / SPEC_FILE).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        data = {}
    tables = {
        name: table for name, table in data.items() if isinstance(table, dict) and name not in ("plan", "monitor")
    }
    try:
        more = environment.read(run)
    except (OSError, ValueError):  # a file that is broken: spec.toml has the main versions
        more = {}
    tables |= {name: more[name] for name in ("packages", "git") if isinstance(more.get(name), dict)}
    return {
        f"{table}.{key}": _diff_in_short(value) if key == "diff" else value
        for table, entries in tables.items()
        for key, value in entries.items()
        if key not in _ALWAYS_OTHER
    }


def _diff_in_short(diff: Any) -> str:
    """What was not committed, so that equal diffs are equal and long ones do not fill a table."""
    text = str(diff)
    mark = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{len(text.splitlines())} lines not committed ({mark})" if text else "clean"


def from_tensorboard(path: Path, tag: str = "") -> ComparedRun:
    """Scalars of a run made elsewhere. Its clock starts at its first value; its number of ranks is not known (0)."""
    folder = event_files(path)[0].parent
    found = read_scalars(path)
    loss = found[_loss_tag(found, tag, path)]
    size = loss.steps.size
    validation = next((found[name] for name in found if _is_validation(name)), None)
    return ComparedRun(
        label=path.name if path.is_dir() else f"{folder.name}/{path.name}"[-64:],
        path=path.absolute(),
        origin="tensorboard",
        state="imported",
        ranks=0,
        curve={
            "step": loss.steps.astype(float),
            "time": loss.times - (loss.times[0] if size else 0.0),
            "tokens": _aligned(found, "tokens", loss),
            "loss": loss.values,
            "tps": _aligned(found, "tps", loss),
            "grad_norm": _aligned(found, "grad_norm", loss),
        },
        validation=(validation.steps.astype(float), validation.values) if validation else (np.empty(0), np.empty(0)),
    )


def _aligned(found: dict[str, Series], tag: str, loss: Series) -> np.ndarray:
    """Values of a tag at the steps of the loss; NaN where it has none."""
    out = np.full(loss.steps.size, math.nan)
    if tag in found:
        known = dict(zip(found[tag].steps.tolist(), found[tag].values.tolist(), strict=True))
        out = np.array([known.get(step, math.nan) for step in loss.steps.tolist()])
    return out


def _loss_tag(found: dict[str, Series], tag: str, path: Path) -> str:
    if tag:
        if tag not in found:
            raise ConfigError(f"{path} has no scalar {tag!r}: {suggest(tag, found or ['none'])}", field="--tag")
        return tag
    named = {name.lower(): name for name in found}
    for word in _LOSS_WORDS:
        if word in named:
            return named[word]
    others = [name for name in found if "loss" in name.lower() and not _is_validation(name)]
    if len(others) == 1:
        return others[0]
    raise ConfigError(
        f"which scalar of {path} is the training loss? pass --tag; it has {', '.join(sorted(found)[:20]) or 'none'}",
        field="--tag",
    )


def _is_validation(name: str) -> bool:
    lowered = name.lower()
    return "loss" in lowered and any(word in lowered for word in ("valid", "val_", "val/", "eval", "test"))


def newest_two() -> list[Path]:
    """The two newest runs of the home: what is compared when nobody says what. ``RunDirectoryError`` below two."""
    paths = run_directory.runs_with_spec()
    if len(paths) < 2:
        raise RunDirectoryError(f"a comparison needs two runs: {run_directory.home()} has {len(paths) or 'none'}")
    return paths[-2:]

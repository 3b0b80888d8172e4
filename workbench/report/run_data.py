"""What a run directory tells, read once and without trust: whatever is missing or broken becomes a note.

Nothing here knows HTML. ``read(path)`` is the only function that touches the disk.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, ParallelPlan, TrainSpec
from workbench.core.mesh import Mesh
from workbench.core.records import END_STATES, SESSION_RANK, EventKind
from workbench.errors import ConfigError, RunDirectoryError, WorkbenchError
from workbench.events.decode import as_number, decode, is_rank
from workbench.report import gaps
from workbench.rundir import directory as run_directory
from workbench.rundir import environment
from workbench.rundir.directory import CELL_FILE
from workbench.rundir.state import present_state, state_of
from workbench.telemetry.derive import global_metrics
from workbench.telemetry.store import Store

#: what a comparison of this plan with one process found, where somebody made one
VERIFICATION_FILE = "verification.json"


@dataclass(frozen=True, kw_only=True)
class LoggedEvent:
    """One event, folded over the ranks that logged the same. ``value`` is decoded JSON."""

    time: float
    step: int
    ranks: tuple[int, ...]
    kind: str
    name: str
    value: Any
    old_value: Any
    who: str = ""
    command: int = 0


@dataclass(frozen=True, kw_only=True)
class RankData:
    """The last that is known of a rank. ``pid`` and ``host`` are None where the log does not say."""

    rank: int
    dp: int
    pp: int
    tp: int
    state: str
    last_step: int
    device: str = ""
    pid: int | None = None
    host: str | None = None
    cpu_percent: float = float("nan")
    rss_bytes: int = 0
    peak_rss_bytes: int = 0
    gpu_memory_bytes: float = float("nan")


@dataclass(kw_only=True)
class RunData:
    """A run as its directory tells it. ``notes`` say what is missing; ``spec`` is None when it cannot be read."""

    path: Path
    store: Store
    spec: TrainSpec | None
    spec_text: str
    cell: str
    versions: dict[str, Any]
    machine: dict[str, Any]
    environment: dict[str, Any]
    verification: dict[str, Any]
    mesh: Mesh
    metrics: Columns
    status: str
    logged_events: list[LoggedEvent]
    ranks: list[RankData]
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name; the directory's where the spec cannot be read."""
        return self.spec.name if self.spec else self.path.name

    def of_kind(self, kind: str, name: str | None = None) -> list[LoggedEvent]:
        """Events of a kind, in order of time."""
        return [h for h in self.logged_events if h.kind == kind and name in (None, h.name)]

    def validation(self) -> list[dict[str, Any]]:
        """One row per step with validation values that are numbers: ``{"step": 50, "loss": 2.3, ...}``."""
        rows: dict[int, dict[str, Any]] = {}
        for h in self.of_kind(EventKind.VALIDATION):
            if isinstance(h.value, float) or not math.isnan(as_number(h.value)):
                rows.setdefault(h.step, {"step": h.step})[h.name] = as_number(h.value)
        return [rows[step] for step in sorted(rows)]

    @property
    def seconds(self) -> float:
        """From the first to the last sign of training; 0.0 when nothing was trained."""
        begun = [h.time for h in self.of_kind(EventKind.STATE, "running")]
        steps = self.store.table("steps")
        if steps["time"].size:
            begun.append(float(steps["time"][0]) - float(steps["step_time_ms"][0]) / 1e3)
        ended = [h.time for kind in END_STATES for h in self.of_kind(EventKind.STATE, kind)]
        ended = ended or [float(steps["time"].max())] if steps["time"].size else ended
        return max(0.0, max(ended) - min(begun)) if begun and ended else 0.0

    def summary(self) -> dict[str, Any]:
        """The figures of ``summary.json``: numbers, or None where the run has none.

        ``tokens_per_second`` counts all ranks together and is the median over steps, the first one left out.
        ``seconds`` is the time of the training alone.
        """
        loss, tps = self.metrics["loss"], self.metrics["tps"]
        validation = [row["loss"] for row in self.validation() if "loss" in row]
        spec = self.spec
        return {
            "recipe": spec.recipe if spec else None,
            "plugin": spec.plan.plugin if spec else None,
            "ranks": self.mesh.world_size,
            "plan": spec.plan.describe() if spec else self.mesh.describe(),
            "steps": int(self.metrics["step"][-1]) if loss.size else 0,
            "first_loss": _number(loss[0]) if loss.size else None,
            "last_loss": _number(loss[-1]) if loss.size else None,
            "validation_loss": _number(validation[-1]) if validation else None,
            "tokens_per_second": _number(float(np.median(tps[1:] if tps.size > 1 else tps)) * self.mesh.world_size)
            if tps.size
            else None,
            "seconds": round(self.seconds, 3),
            "run": str(self.path),
        }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def read(path: str | Path) -> RunData:
    """Everything that a run directory tells. ``RunDirectoryError`` only when it is no run directory at all."""
    path = Path(path).expanduser().resolve()
    if not path.is_dir() or not run_directory.is_run(path):
        raise RunDirectoryError(
            f"{path} is no run directory (neither commands nor logs in it): `workbench runs` lists those here, "
            "`workbench train SPEC.toml` makes one"
        )
    notes: list[str] = []
    store = Store(path, spare=True)
    gaps.read_logs(store, notes)
    spec, spec_text, extra = _read_spec(path, store, notes)
    present = sorted(int(d.name[5:]) for d in path.glob("rank-*") if d.name[5:].isdigit() and any(d.iterdir()))
    mesh = spec.plan.mesh if spec else Mesh(dp=max(present, default=0) + 1)
    if spec is None:  # figures ask the store for the plan: they are drawn on the guess
        store.assumed = TrainSpec(plan=ParallelPlan(ranks=mesh.world_size), batch_size=mesh.world_size)
    raw = _events(store)
    logged_events = fold(raw)
    ranks = mesh.world_size - len(gaps.silent(store.table("events"), mesh))
    status = present_state(state_of(store.table("events"), ranks), path)
    if status not in ("starting", "running", "paused"):
        store.absent = gaps.silent(store.table("steps"), mesh)
    metrics = global_metrics(store.table("steps"), mesh, len(store.absent))
    notes += gaps.notes_of(store, mesh, present, metrics, status)
    cell = path / CELL_FILE
    return RunData(
        path=path,
        store=store,
        spec=spec,
        spec_text=spec_text,
        cell=cell.read_text(encoding="utf-8", errors="replace") if cell.exists() else "",
        versions=extra["versions"],
        machine=extra["machine"],
        environment=_json_file(path / environment.ENVIRONMENT_FILE, notes),
        verification=_json_file(path / VERIFICATION_FILE, notes),
        mesh=mesh,
        metrics=metrics,
        status=status,
        logged_events=logged_events,
        ranks=_rank_data(store, mesh, raw),
        notes=notes,
    )


def _read_spec(path: Path, store: Store, notes: list[str]) -> tuple[TrainSpec | None, str, dict[str, dict[str, Any]]]:
    """The spec, its text, and its tables for people (``versions``, ``machine``)."""
    extra: dict[str, dict[str, Any]] = {"versions": {}, "machine": {}}
    spec: TrainSpec | None = None
    try:
        spec = store.spec
    except (WorkbenchError, ConfigError, TypeError) as error:
        notes.append(f"The spec could not be read, so the plan is a guess from the logs: {error}")
    try:
        text = (path / SPEC_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return spec, "", extra
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return spec, text, extra  # the note about the spec says it
    for table, found in extra.items():
        if isinstance(data.get(table), dict):
            found.update(data[table])
    return spec, text, extra


def _json_file(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON table of the run directory; empty when there is none, with a note when it cannot be understood."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return {}
    if isinstance(found, dict):
        return found
    notes.append(f"{path.name} could not be read: it holds no table")
    return {}


def _events(store: Store) -> list[LoggedEvent]:
    columns = store.table("events")
    rows = zip(*(columns[name].tolist() for name in columns), strict=True)
    names = list(columns)
    found = []
    for row in rows:
        event = dict(zip(names, row, strict=True))
        ranks = (event.pop("rank"),)
        value, old = decode(event.pop("value")), decode(event.pop("old_value"))
        found.append(LoggedEvent(ranks=ranks, value=value, old_value=old, **event))
    return found


def fold(logged_events: Iterable[LoggedEvent]) -> list[LoggedEvent]:
    """What several ranks logged alike (same step, kind, name and values; pids aside) becomes one, at its first time."""
    groups: dict[tuple[Any, ...], list[LoggedEvent]] = {}
    for logged in logged_events:
        value = logged.value
        if isinstance(value, dict):
            value = {key: entry for key, entry in value.items() if key != "pid"}
        h = replace(logged, value=value)
        texts = (json.dumps(h.value, sort_keys=True), json.dumps(h.old_value, sort_keys=True))
        key = (h.step, h.kind, h.name, *texts, h.command)
        groups.setdefault(key, []).append(h)
    folded = []
    for same in groups.values():
        first = min(same, key=lambda h: h.time)
        ranks = tuple(sorted({rank for h in same for rank in h.ranks}))
        folded.append(replace(first, ranks=ranks))
    return sorted(folded, key=lambda h: h.time)


def states_of(logged_events: Iterable[LoggedEvent]) -> dict[int, str]:
    """Rank -> its last state; a rank that the session saw dying is ``died``."""
    states: dict[int, str] = {}
    for h in logged_events:
        if h.kind == EventKind.STATE:
            states.update(dict.fromkeys((rank for rank in h.ranks if rank != SESSION_RANK), h.name))
    for h in logged_events:
        if h.kind == EventKind.RANK and h.name == "died" and isinstance(h.value, dict) and is_rank(h.value.get("rank")):
            states[h.value["rank"]] = "died"
    return states


def _rank_data(store: Store, mesh: Mesh, logged_events: list[LoggedEvent]) -> list[RankData]:
    steps, devices = store.table("steps"), store.table("devices")
    states = states_of(logged_events)
    details: dict[int, dict[str, Any]] = {}
    for h in logged_events:
        if h.kind == EventKind.STATE and isinstance(h.value, dict):
            for rank in h.ranks:
                details.setdefault(rank, {}).update({k: v for k, v in h.value.items() if k in ("pid", "host")})
    found = []
    for rank in range(mesh.world_size):
        at = mesh.coordinates(rank)
        own = np.flatnonzero(devices["rank"] == rank)
        samples: dict[str, Any] = {}
        if own.size:
            rss = devices["rss_bytes"][own]
            samples = {
                "device": devices["device"][own[-1]],
                "cpu_percent": float(np.mean(devices["cpu_percent"][own])),
                "rss_bytes": int(rss[-1]),
                "peak_rss_bytes": int(rss.max()),
                "gpu_memory_bytes": float(devices["gpu_memory_bytes"][own[-1]]),
            }
        mine = steps["step"][steps["rank"] == rank]
        found.append(
            RankData(
                rank=rank,
                dp=at.dp,
                pp=at.pp,
                tp=at.tp,
                state=states.get(rank, "no log"),
                last_step=int(mine.max()) if mine.size else 0,
                **samples,
                **details.get(rank, {}),
            )
        )
    return found

"""Reads a run directory for a report: ``read(path)``. Missing and damaged files become notes instead of errors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, ParallelPlan, TrainSpec
from workbench.core.controls import LIVE
from workbench.core.frameworks import usable
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
from workbench.telemetry.pauses import Pauses
from workbench.telemetry.rollbacks import validated
from workbench.telemetry.store import Store

#: optional file with the result of comparing this run with training in one process
VERIFICATION_FILE = "verification.json"


@dataclass(frozen=True, kw_only=True)
class LoggedEvent:
    """An event, with all ranks that logged it.

    ``time``: seconds since the epoch, of the first rank that logged it. ``value`` and ``old_value`` are decoded JSON.
    ``who`` and ``command``: who asked for the change, and the id of the command.
    """

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
    """The last known state of a rank.

    ``dp``, ``pp``, ``cp``, ``tp``: its coordinates in the mesh. ``pid`` and ``host`` are None if the log does not
    contain them. ``cpu_percent`` is a mean over the run; ``gpu_memory_bytes`` and ``rss_bytes`` are the last samples.
    """

    rank: int
    dp: int
    pp: int
    tp: int
    cp: int
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
    """The content of a run directory.

    ``spec`` is None and ``spec_text`` may be empty if ``spec.toml`` cannot be read; ``versions`` and ``machine`` are
    tables of that file. ``cell``: source of the cell that defined the model, or "". ``metrics``: metrics of the whole
    run, one row per step. ``configs``: resolved configurations of the framework's library, by file name. ``notes``:
    sentences about what is missing or damaged.
    """

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
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name; the directory's name if the spec cannot be read."""
        return self.spec.name if self.spec else self.path.name

    def events_of_kind(self, kind: str, name: str | None = None) -> list[LoggedEvent]:
        """The events of a kind, and of a name if one is given, in order of time."""
        return [event for event in self.logged_events if event.kind == kind and name in (None, event.name)]

    def validation(self) -> list[dict[str, Any]]:
        """The numeric validation metrics that no rollback took back, one row per step: ``{"step": 50, ...}``."""
        rows: dict[int, dict[str, Any]] = {}
        for event in validated(self.store.table("events")):
            rows.setdefault(event.step, {"step": event.step})[event.name] = as_number(event.value)
        return [rows[step] for step in sorted(rows)]

    @property
    def seconds(self) -> float:
        """Duration of the training in seconds, without pauses; 0.0 if nothing was trained.

        It begins with the state ``running`` or the first step, and ends with the end state or else the last step.
        """
        start_times = [event.time for event in self.events_of_kind(EventKind.STATE, "running")]
        steps = self.store.table("steps")
        if steps["time"].size:
            start_times.append(float(steps["time"][0]) - float(steps["step_time_ms"][0]) / 1e3)
        end_times = [event.time for state in END_STATES for event in self.events_of_kind(EventKind.STATE, state)]
        end_times = end_times or [float(steps["time"].max())] if steps["time"].size else end_times
        if not start_times or not end_times:
            return 0.0
        paused = Pauses().take(self.store.table("events")).before(max(end_times))
        return max(0.0, max(end_times) - min(start_times) - float(paused))

    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``. A value is None if the run does not have it.

        ``tokens_per_second`` is the sum over all ranks, as a median over all steps but the first. ``seconds`` is the
        duration of the training.
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
            "first_loss": _finite_or_none(loss[0]) if loss.size else None,
            "last_loss": _finite_or_none(loss[-1]) if loss.size else None,
            "validation_loss": _finite_or_none(validation[-1]) if validation else None,
            "tokens_per_second": _finite_or_none(
                float(np.median(tps[1:] if tps.size > 1 else tps)) * self.mesh.world_size
            )
            if tps.size
            else None,
            "seconds": round(self.seconds, 3),
            "run": str(self.path),
        }


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def read(path: str | Path) -> RunData:
    """Read a run directory. Raises ``RunDirectoryError`` if ``path`` is not a run directory."""
    path = Path(path).expanduser().resolve()
    if not path.is_dir() or not run_directory.is_run(path):
        raise RunDirectoryError(
            f"{path} is not a run directory: it contains neither {run_directory.CONTROL_FILE} nor logs of ranks. "
            "`workbench runs` lists the run directories; `workbench train SPEC.toml` makes a new one"
        )
    notes: list[str] = []
    store = Store(path, spare=True)
    gaps.read_logs(store, notes)
    spec, spec_text, extra = _read_spec(path, store, notes)
    ranks_with_logs = sorted(int(d.name[5:]) for d in path.glob("rank-*") if d.name[5:].isdigit() and any(d.iterdir()))
    mesh = spec.plan.mesh if spec else Mesh(dp=max(ranks_with_logs, default=0) + 1)
    if spec is None:  # figures read the plan from the store: assume plain data parallelism
        store.assumed = TrainSpec(plan=ParallelPlan(ranks=mesh.world_size), batch_size=mesh.world_size)
    events_per_rank = _read_events(store)
    logged_events = merge_equal_events(events_per_rank)
    ranks = mesh.world_size - len(gaps.ranks_without_rows(store.table("events"), mesh))
    status = present_state(state_of(store.table("events"), ranks), path)
    if status not in LIVE:
        store.absent = gaps.ranks_without_rows(store.table("steps"), mesh)
    metrics = global_metrics(store.table("steps"), mesh, len(store.absent))
    notes += gaps.describe_gaps(store, mesh, ranks_with_logs, metrics, status)
    cell = path / CELL_FILE
    return RunData(
        path=path,
        store=store,
        spec=spec,
        spec_text=spec_text,
        cell=cell.read_text(encoding="utf-8", errors="replace") if cell.exists() else "",
        versions=extra["versions"],
        machine=extra["machine"],
        environment=_read_json_table(path / environment.ENVIRONMENT_FILE, notes),
        verification=_read_json_table(path / VERIFICATION_FILE, notes),
        mesh=mesh,
        metrics=metrics,
        status=status,
        logged_events=logged_events,
        ranks=_rank_data(store, mesh, events_per_rank),
        configs={
            each.config_file.file: found
            for each in usable()
            if each.config_file is not None
            if (found := _read_json_table(path / each.config_file.file, notes))
        },
        notes=notes,
    )


def _read_spec(path: Path, store: Store, notes: list[str]) -> tuple[TrainSpec | None, str, dict[str, dict[str, Any]]]:
    """The spec (None if it cannot be read), its text, and its tables ``versions`` and ``machine``."""
    extra: dict[str, dict[str, Any]] = {"versions": {}, "machine": {}}
    spec: TrainSpec | None = None
    try:
        spec = store.spec
    except (WorkbenchError, ConfigError, TypeError) as error:
        notes.append(f"The spec could not be read, so data parallelism over the logged ranks is assumed: {error}")
    try:
        text = (path / SPEC_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return spec, "", extra
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return spec, text, extra  # a note about the spec was added above
    for table, values in extra.items():
        if isinstance(data.get(table), dict):
            values.update(data[table])
    return spec, text, extra


def _read_json_table(path: Path, notes: list[str]) -> dict[str, Any]:
    """The content of a JSON file; empty if there is no file, or, with a note, if it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} could not be read: {error}.")
        return {}
    if isinstance(content, dict):
        return content
    notes.append(f"{path.name} could not be read: it does not contain a JSON object.")
    return {}


def _read_events(store: Store) -> list[LoggedEvent]:
    """The events as they were logged, each with one rank."""
    columns = store.table("events")
    rows = zip(*(columns[name].tolist() for name in columns), strict=True)
    names = list(columns)
    events = []
    for row in rows:
        fields = dict(zip(names, row, strict=True))
        ranks = (fields.pop("rank"),)
        value, old_value = decode(fields.pop("value")), decode(fields.pop("old_value"))
        events.append(LoggedEvent(ranks=ranks, value=value, old_value=old_value, **fields))
    return events


def merge_equal_events(logged_events: Iterable[LoggedEvent]) -> list[LoggedEvent]:
    """Merge events that several ranks logged with the same step, kind, name, command and values.

    A merged event has all their ranks and their earliest time. A ``pid`` in a value is ignored and removed. The result
    is in order of time.
    """
    groups: dict[tuple[Any, ...], list[LoggedEvent]] = {}
    for logged_event in logged_events:
        value = logged_event.value
        if isinstance(value, dict):
            value = {key: entry for key, entry in value.items() if key != "pid"}
        event = replace(logged_event, value=value)
        texts = (json.dumps(event.value, sort_keys=True), json.dumps(event.old_value, sort_keys=True))
        key = (event.step, event.kind, event.name, *texts, event.command)
        groups.setdefault(key, []).append(event)
    merged = []
    for group in groups.values():
        first = min(group, key=lambda event: event.time)
        ranks = tuple(sorted({rank for event in group for rank in event.ranks}))
        merged.append(replace(first, ranks=ranks))
    return sorted(merged, key=lambda event: event.time)


def last_states(logged_events: Iterable[LoggedEvent]) -> dict[int, str]:
    """The last state of each rank; ``died`` for a rank whose death the session logged."""
    states: dict[int, str] = {}
    for event in logged_events:
        if event.kind == EventKind.STATE:
            states.update(dict.fromkeys((rank for rank in event.ranks if rank != SESSION_RANK), event.name))
    for event in logged_events:
        value = event.value
        if event.kind != EventKind.RANK or event.name != "died" or not isinstance(value, dict):
            continue
        if is_rank(value.get("rank")):
            states[value["rank"]] = "died"
    return states


def _rank_data(store: Store, mesh: Mesh, logged_events: list[LoggedEvent]) -> list[RankData]:
    steps, devices = store.table("steps"), store.table("devices")
    states = last_states(logged_events)
    processes: dict[int, dict[str, Any]] = {}
    for event in logged_events:
        if event.kind == EventKind.STATE and isinstance(event.value, dict):
            for rank in event.ranks:
                processes.setdefault(rank, {}).update({k: v for k, v in event.value.items() if k in ("pid", "host")})
    ranks = []
    for rank in range(mesh.world_size):
        coordinates = mesh.coordinates(rank)
        rows = np.flatnonzero(devices["rank"] == rank)
        samples: dict[str, Any] = {}
        if rows.size:
            rss = devices["rss_bytes"][rows]
            samples = {
                "device": devices["device"][rows[-1]],
                "cpu_percent": float(np.mean(devices["cpu_percent"][rows])),
                "rss_bytes": int(rss[-1]),
                "peak_rss_bytes": int(rss.max()),
                "gpu_memory_bytes": float(devices["gpu_memory_bytes"][rows[-1]]),
            }
        rank_steps = steps["step"][steps["rank"] == rank]
        ranks.append(
            RankData(
                rank=rank,
                dp=coordinates.dp,
                pp=coordinates.pp,
                tp=coordinates.tp,
                cp=coordinates.cp,
                state=states.get(rank, "no log"),
                last_step=int(rank_steps.max()) if rank_steps.size else 0,
                **samples,
                **processes.get(rank, {}),
            )
        )
    return ranks

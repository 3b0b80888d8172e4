"""Reads a run's store step by step, as the rules of alerts look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.core.rules.expressions import METRICS, Expression
from workbench.errors import ConfigError
from workbench.events.decode import DecodedEvent, as_mapping, as_number, decoded_row
from workbench.telemetry import row_views as rows
from workbench.telemetry.derive import global_metrics
from workbench.telemetry.gradients import combine_columns, weight_columns
from workbench.telemetry.layer_norms import LayerLists, with_norms
from workbench.telemetry.logged.curves import by_step
from workbench.telemetry.store import Store

#: tables that rules look at
_TABLES = ("events", "steps", "devices", "gradients", "layer_norms", "weights", "attention", "values")
#: kinds of events that rules look at
_KINDS = (EventKind.SPIKE, EventKind.NONFINITE, EventKind.CONTROL, EventKind.VALIDATION)
#: steps whose rows are combined at a time
_CHUNK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """What is known of one step that all ranks have finished.

    ``values``: the numbers of ``Run.metrics``, of the last validation, and what the script logged; empty where the step
    was not logged. ``logged``: the names of those that the script logged at this step.
    ``losses``: of each data-parallel replica. ``layers``: rows of ``telemetry.gradients.combine``; ``weights``: of
    ``weight_columns``; ``attention``: rows of that table; None without any. ``memory``: bytes of each rank.
    ``places``: layer -> its place in the model. ``block``: ranks of a replica.
    """

    step: int
    time: float
    values: Mapping[str, float] = field(default_factory=dict)
    logged: frozenset[str] = frozenset()
    losses: np.ndarray | None = None
    layers: Columns | None = None
    weights: Columns | None = None
    attention: Columns | None = None
    memory: Mapping[int, float] = field(default_factory=dict)
    events: tuple[DecodedEvent, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    block: int = 1


class StepReader:
    """Gives each step once, in order. ``limit`` of ``read`` is the last step that no rank will add to any more.

    Of what the script logged it gives what conditions name, or everything (``all_logged``)."""

    def __init__(self, store: Store, *, all_logged: bool = False) -> None:
        self._store = store
        self._all_logged = all_logged
        self._wanted: set[str] = set()
        self._cursors: dict[str, int] = dict.fromkeys(_TABLES, 0)
        self._waiting: dict[str, list[Columns]] = {table: [] for table in _TABLES}
        self._lists = LayerLists()
        self._places: dict[str, int] = {}
        self._validation: dict[str, float] = {}
        self._time = 0.0
        self._done = -1

    def read(self, limit: int) -> Iterator[StepView]:
        """The steps up to ``limit`` that were not given before."""
        taken = {table: self._take(table, limit) for table in _TABLES}
        self._read_lists(taken["events"])
        taken["values"] = self._of_conditions(taken["values"], taken["events"])
        steps = np.unique(np.concatenate([taken[name]["step"] for name in _TABLES if name != "devices"]))
        steps = steps[steps > 0] if not (taken["events"]["step"] == 0).any() else steps
        self._done = max([self._done, *steps[-1:].tolist()])
        for begin in range(0, steps.size, _CHUNK):
            part = steps[begin : begin + _CHUNK]
            within = {table: _between(columns, int(part[0]), int(part[-1])) for table, columns in taken.items()}
            yield from self._views(part, within)

    def _take(self, table: str, limit: int) -> Columns:
        news, self._cursors[table] = self._store.since(table, self._cursors[table])
        if table == "events":
            wanted = np.isin(news["kind"], (*_KINDS, EventKind.LAYERS))
            news = {name: values[wanted] for name, values in news.items()}
        parts = [*self._waiting[table], {name: values.copy() for name, values in news.items()}]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in news}
        late = (joined["step"] <= self._done) & (joined["step"] > 0)  # of a step that was given already
        joined = {name: values[~late] for name, values in joined.items()}
        ready = joined["step"] <= limit
        self._waiting[table] = [{name: values[~ready] for name, values in joined.items()}]
        return {name: values[ready] for name, values in joined.items()}

    def _read_lists(self, events: Columns) -> None:
        of_layers = events["kind"] == EventKind.LAYERS
        if not of_layers.any():
            return
        self._lists.read(events)
        for row in np.flatnonzero(of_layers):
            parts = as_mapping(decoded_row(events, int(row)).value).get("parts")
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, list) and part:
                    self._places.setdefault(str(part[0]), len(self._places))

    def _of_conditions(self, values: Columns, events: Columns) -> Columns:
        """The rows of what conditions name, those that ``events`` declare too."""
        if self._all_logged:
            return values
        for row in np.flatnonzero(events["name"] == "alert"):
            when = as_mapping(decoded_row(events, int(row)).value).get("when")
            with suppress(ConfigError):  # an event that is no declaration: the engine leaves it out too
                self._wanted.update(Expression(str(when)).logged)
        wanted = np.isin(values["name"].astype(object), list(self._wanted))
        return {name: column[wanted] for name, column in values.items()}

    def _views(self, steps: np.ndarray, taken: dict[str, Columns]) -> Iterator[StepView]:
        store, mesh = self._store, self._store.mesh
        metrics = global_metrics(taken["steps"], mesh, len(store.absent))
        raw = with_norms(taken["gradients"], taken["layer_norms"], self._lists, mesh)
        layers = combine_columns(raw, mesh) if raw["step"].size else None
        weights = weight_columns(taken["weights"], mesh) if taken["weights"]["step"].size else None
        memory = _memory_by_step(taken["devices"])
        logged = by_step(taken["values"], mesh)
        for step in map(int, steps):
            row = np.flatnonzero(metrics["step"] == step)
            values = {name: float(metrics[name][row[0]]) for name in METRICS} if row.size else {}
            events = _at(taken["events"], step)
            told = tuple(decoded_row(events, place) for place in range(events["step"].size))
            for event in told:
                if event.kind == EventKind.VALIDATION:
                    self._validation[f"validation_{event.name}"] = as_number(event.value)
            self._time = values.get("time", max([self._time, *(event.time for event in told)]))
            yield StepView(
                step=step,
                time=self._time,
                values=logged.get(step, {}) | self._validation | values if values else {},
                logged=frozenset(logged.get(step, {})),
                losses=self._losses(_at(taken["steps"], step)) if row.size else None,
                layers=_some(layers, step),
                weights=_some(weights, step),
                attention=_some(taken["attention"], step),
                memory=memory.get(step, {}),
                events=told,
                places=self._places,
                block=mesh.replica_size,
            )

    def _losses(self, steps: Columns) -> np.ndarray:
        """The loss of each data-parallel replica, NaN where it is not known."""
        mesh = self._store.mesh
        out = np.full(mesh.dp, np.nan)
        for rank, loss in zip(steps["rank"], steps["loss"], strict=True):
            here = mesh.coordinates(int(rank)) if 0 <= rank < mesh.world_size else None
            if here is not None and here.pp == mesh.pp - 1 and here.leads:
                out[here.dp] = loss
        return out


def last_whole_step(store: Store, *, over: bool = False) -> int:
    """The last step that no rank will add to any more; ``over``: nothing at all will come."""
    return int(rows.progress(store).furthest.min(initial=2**62)) if over else rows.last_whole_step(store)


def _between(columns: Columns, first: int, last: int) -> Columns:
    taken = (columns["step"] >= first) & (columns["step"] <= last)
    return {name: values[taken] for name, values in columns.items()}


def _at(columns: Columns, step: int) -> Columns:
    return _between(columns, step, step)


def _some(columns: Columns | None, step: int) -> Columns | None:
    if columns is None:
        return None
    found = _at(columns, step)
    return found if found["step"].size else None


def _memory_by_step(devices: Columns) -> dict[int, dict[int, float]]:
    """step -> rank -> bytes: of the GPU's tensors where there is one, else of the process."""
    used = np.where(np.isnan(devices["gpu_allocated_bytes"]), devices["rss_bytes"], devices["gpu_allocated_bytes"])
    out: dict[int, dict[int, Any]] = {}
    for step, rank, size in zip(devices["step"].tolist(), devices["rank"].tolist(), used.tolist(), strict=True):
        out.setdefault(step, {})[rank] = size
    return out

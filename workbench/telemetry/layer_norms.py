"""Rows of ``layer_norms`` as rows of ``gradients``, so that whoever combines one combines both. Pure functions."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.core.records import EventKind, GradientStats
from workbench.events.decode import as_mapping, as_number, of_kind
from workbench.telemetry.store import Store

#: what only full statistics have, in a row that has the norm alone
_UNKNOWN: dict[str, Any] = {"sum": math.nan, "max_abs": math.nan, "zero_count": -1, "underflow_count": -1}
_DEFAULTS = {f.name: f.default for f in fields(GradientStats) if f.default is not MISSING} | _UNKNOWN


class LayerLists:
    """What the norms of a row are of: the parts (layer, sharded, number of elements) that events ``layers`` list."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], Columns] = {}

    def read(self, events: Columns) -> LayerLists:
        """Take the lists among ``events``; what is malformed is passed over."""
        for event in of_kind(events, EventKind.LAYERS, "norms"):
            told = as_mapping(event.value)
            listed, number = told.get("parts"), as_number(told.get("layout"))
            if math.isfinite(number) and isinstance(listed, list) and all(_is_part(part) for part in listed):
                layer, sharded, numel = zip(*listed, strict=True) if listed else ((), (), ())
                self._parts[event.rank, int(number)] = {
                    "layer": _texts(layer),
                    "sharded": _texts(sharded),
                    "numel": np.array(numel, dtype=np.int64),
                }
        return self

    def of(self, rank: int, layout: int) -> Columns | None:
        """The columns layer, sharded and numel of a rank's list; None where it is not known."""
        return self._parts.get((rank, layout))


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) == 3
        and isinstance(part[0], str)
        and isinstance(part[1], str)
        and isinstance(part[2], int)
    )


def _texts(values: Any) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def expand(norms: Columns, lists: LayerLists, mesh: Mesh) -> Columns:
    """Rows of ``layer_norms`` -> rows of ``gradients``, one per step, rank and part, with the norm alone.

    With one replica the reduced gradient is the local one, so rows of the reduced are there as local ones too. Rows
    whose list is not known, or has another length, are left out.
    """
    found: list[Columns] = []
    rank, layout = np.asarray(norms["rank"]), np.asarray(norms["layout"])
    scope, values = np.asarray(norms["scope"], dtype=object), np.asarray(norms["norms"], dtype=object)
    for key in sorted(set(zip(rank.tolist(), layout.tolist(), scope.tolist(), strict=True))):
        parts = lists.of(key[0], key[1])
        if parts is None or not parts["numel"].size:
            continue
        own = np.flatnonzero((rank == key[0]) & (layout == key[1]) & (scope == key[2]))
        own = own[[len(values[at]) == parts["numel"].size for at in own]]
        if own.size:
            table = np.stack([np.asarray(values[at], dtype=float) for at in own])
            scopes = ("local", "reduced") if key[2] == "reduced" and mesh.dp == 1 else (key[2],)
            found += [_rows(np.asarray(norms["step"])[own], key[0], each, parts, table) for each in scopes]
    if not found:
        return {name: values[:0] for name, values in _rows(np.zeros(0), 0, "", _NOTHING, np.zeros((0, 0))).items()}
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


_NOTHING: Columns = {"layer": _texts(()), "sharded": _texts(()), "numel": np.zeros(0, dtype=np.int64)}


def _rows(step: np.ndarray, rank: int, scope: str, parts: Columns, norms: np.ndarray) -> Columns:
    """``norms``: float64 [steps, parts]."""
    count = norms.size
    with np.errstate(over="ignore", invalid="ignore"):
        squares = norms.reshape(-1) ** 2
    rows: Columns = {
        "step": np.repeat(step.astype(np.int64), norms.shape[1]),
        "rank": np.full(count, rank, dtype=np.int64),
        **{name: np.tile(values, len(step)) for name, values in parts.items()},
        "scope": np.full(count, scope, dtype=object),
        "sum_sq": squares,
        "nonfinite_count": np.where(np.isfinite(squares), 0, -1),
    }
    for name, value in _DEFAULTS.items():
        rows[name] = np.full(count, value, dtype=object if isinstance(value, str) else None)
    return {f.name: rows[f.name] for f in fields(GradientStats)}


def gradient_rows(store: Store) -> Columns:
    """All rows of ``gradients``, with those of ``layer_norms`` among them."""
    lists = LayerLists().read(store.table("events"))
    return with_norms(store.table("gradients"), store.table("layer_norms"), lists, store.mesh)


def with_norms(gradients: Columns, norms: Columns, lists: LayerLists, mesh: Mesh) -> Columns:
    """Rows of ``gradients`` and those of ``layer_norms`` after them, as rows of ``gradients``."""
    added = expand(norms, lists, mesh)
    if not added["step"].size:
        return gradients
    return {name: np.concatenate([np.asarray(values), added[name]]) for name, values in gradients.items()}

"""What the training script logged, as curves: rows of the table ``values`` of all ranks combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh

if TYPE_CHECKING:
    import pandas as pd

#: a curve of all ranks
ALL_RANKS = -1


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One logged name over steps, ascending; ``rank``: whose it is (``ALL_RANKS``: combined as ``reduce`` says)."""

    name: str
    rank: int
    reduce: str
    steps: np.ndarray
    values: np.ndarray

    @property
    def label(self) -> str:
        """``accuracy``, or ``accuracy/rank 3``."""
        return self.name if self.rank == ALL_RANKS else f"{self.name}/rank {self.rank}"


def curves(rows: Columns, mesh: Mesh, *, per_rank: bool = False) -> list[Curve]:
    """The curves of the table ``values``, in the order in which names came: one per name or, of those that are not
    reduced over ranks, one per rank. ``per_rank``: one per rank of every name instead.

    Ranks of a tensor-parallel group log the same values, so the first of those that logged counts for all. A mean is
    over calls: each rank's by their number. NaN stays NaN.
    """
    known = (rows["rank"] >= 0) & (rows["rank"] < mesh.world_size)
    rows = rows if known.all() else {name: values[known] for name, values in rows.items()}
    found: list[Curve] = []
    for name, index in _by_name(rows["name"]).items():
        own = {column: rows[column][index] for column in ("step", "rank", "value", "count")}
        reduce = str(rows["reduce"][index[0]])
        if per_rank or reduce == "none":
            for rank in np.unique(own["rank"]).tolist():
                here = own["rank"] == rank
                found.append(_curve(name, rank, reduce, {column: values[here] for column, values in own.items()}))
        else:
            once = _once_per_group(own, mesh)
            found.append(_curve(name, ALL_RANKS, reduce, {column: values[once] for column, values in own.items()}))
    return found


def _by_name(names: np.ndarray) -> dict[str, np.ndarray]:
    places: dict[str, int] = {}
    number = np.fromiter((places.setdefault(name, len(places)) for name in names.tolist()), dtype=int, count=names.size)
    order = np.argsort(number, kind="stable")
    ends = np.cumsum(np.bincount(number, minlength=len(places)))
    return dict(zip(places, np.split(order, ends[:-1]), strict=True)) if places else {}


def _once_per_group(rows: Columns, mesh: Mesh) -> np.ndarray:
    """A mask of the rows that count: of each step and group of ranks that compute the same, those of its lowest rank
    that logged."""
    if mesh.peers == 1:
        return np.ones(rows["rank"].size, dtype=bool)
    group = rows["step"] * mesh.world_size + rows["rank"] // mesh.peers
    numbers, index = np.unique(group, return_inverse=True)
    lowest = np.full(numbers.size, mesh.world_size)
    np.minimum.at(lowest, index, rows["rank"])
    return rows["rank"] == lowest[index]


def _curve(name: str, rank: int, reduce: str, rows: Columns) -> Curve:
    steps, index = np.unique(rows["step"], return_inverse=True)
    with np.errstate(invalid="ignore"):
        if reduce in ("max", "min"):
            values = np.full(steps.size, -np.inf if reduce == "max" else np.inf)
            (np.maximum if reduce == "max" else np.minimum).at(values, index, rows["value"])
        elif reduce == "sum":
            values = np.bincount(index, weights=rows["value"], minlength=steps.size)
        else:
            weights = rows["count"].astype(float)
            total = np.bincount(index, weights=rows["value"] * weights, minlength=steps.size)
            values = total / np.bincount(index, weights=weights, minlength=steps.size)
    return Curve(name=name, rank=rank, reduce=reduce, steps=steps, values=values)


def one_per_name(found: list[Curve]) -> list[Curve]:
    """The curves, with one per name: where ranks are not combined, the mean of those that logged a step."""
    by_name: dict[str, list[Curve]] = {}
    for curve in found:
        by_name.setdefault(curve.name, []).append(curve)
    return [own[0] if own[0].rank == ALL_RANKS else _mean(own) for own in by_name.values()]


def _mean(own: list[Curve]) -> Curve:
    rows = {name: np.concatenate([getattr(curve, name) for curve in own]) for name in ("steps", "values")}
    columns = {"step": rows["steps"], "value": rows["values"], "count": np.ones(rows["steps"].size)}
    return _curve(own[0].name, ALL_RANKS, "none", columns)


def by_step(rows: Columns, mesh: Mesh) -> dict[int, dict[str, float]]:
    """step -> name -> value, of ``one_per_name``."""
    found: dict[int, dict[str, float]] = {}
    for curve in one_per_name(curves(rows, mesh)):
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            found.setdefault(step, {})[curve.name] = value
    return found


def values_frame(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """``curves`` as rows: step, name, rank (-1: of all ranks), reduce, value."""
    import pandas as pd

    columns: dict[str, list[Any]] = {"step": [], "name": [], "rank": [], "reduce": [], "value": []}
    for curve in curves(rows, mesh):
        columns["step"] += curve.steps.tolist()
        columns["value"] += curve.values.tolist()
        for column, value in (("name", curve.name), ("rank", curve.rank), ("reduce", curve.reduce)):
            columns[column] += [value] * curve.steps.size
    return pd.DataFrame(columns)


def add_columns(frame: pd.DataFrame, rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """``frame``, one row per step (and ``rank``, where it has that column), with a column per curve: NaN in steps
    without a value. A name that the frame has already becomes ``log/name``."""
    taken = set(frame.columns)
    found = curves(rows, mesh)
    if "rank" in taken:
        found = [curve for curve in found if curve.rank == ALL_RANKS] + curves(rows, mesh, per_rank=True)
    values: dict[str, dict[tuple[int, int], float]] = {}
    for curve in found:
        label = curve.name if "rank" in taken else curve.label
        pairs = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
        column = values.setdefault(f"log/{label}" if label in taken else label, {})
        column.update({(step, curve.rank if "rank" in taken else ALL_RANKS): value for step, value in pairs})
    if not values:
        return frame
    import pandas as pd

    ranks = frame["rank"] if "rank" in taken else [ALL_RANKS] * len(frame)
    keys = list(zip(frame["step"].astype(int).tolist(), list(ranks), strict=True))
    added = {label: [column.get(key, np.nan) for key in keys] for label, column in values.items()}
    return pd.concat([frame, pd.DataFrame(added, index=frame.index, dtype=float)], axis=1)

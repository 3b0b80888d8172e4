"""Combining the parts of gradients that ranks logged: exact sums, pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh

if TYPE_CHECKING:  # ranks combine columns and import no pandas, which takes a second
    import pandas as pd

STATISTICS = ("norm", "max_abs", "mean", "zero_fraction", "nonfinite_count", "underflow_fraction")
_KEYS = ["step", "layer", "scope", "group"]
_SCOPES = np.array(["local", "reduced"], dtype=object)
#: how a cosine was had
_UNKNOWN, _EXACT, _NORMS, _SLICE = range(4)
_KINDS = np.array(["", "exact", "norms", "slice"], dtype=object)


def combine(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``gradients`` table -> one row per (step, rank, layer, scope).

    Columns: step, rank, layer, scope, norm (L2), max_abs, mean, zero_fraction, nonfinite_count, underflow_fraction,
    cosine, cosine_kind, norm_ratio, shards, replicas. Scope "local" is the gradient of a data-parallel replica's own
    share of the batch, scope "reduced" the averaged one; both are of the *whole* layer as the user wrote it: shards are
    summed, replicated parts counted once, and every rank that holds a part has a row with the same numbers. ``shards``:
    over how many ranks some of the elements are split; ``replicas``: how many data-parallel ranks hold the same values.

    ``cosine`` is the angle between a replica's gradient and the mean one, ``norm_ratio`` the quotient of their norms.
    ``cosine_kind`` says how it was had: "exact" (an inner product that was measured, or there is one replica), "norms"
    (two replicas: follows from the three norms), "slice" (ZeRO-2: over this rank's own slice of the layer only, an
    estimate), "" (not known). Where only norms were taken, the other columns are NaN; ``nonfinite_count`` is then known
    only if the norm is finite.
    """
    import pandas as pd

    return pd.DataFrame(combine_columns(rows, mesh))


def combine_columns(rows: Columns, mesh: Mesh) -> Columns:
    """``combine`` as columns, by step, scope, layer and rank."""
    keys = _Keys(rows, mesh)
    is_local, is_part = keys.scope == "local", keys.scope != "slice"
    parts = {name: np.asarray(values)[is_part] for name, values in rows.items()}
    cells, whole = _whole_layers(parts, keys.cell(keys.step, keys.layer, ~is_local, keys.rank)[is_part], mesh)
    # who holds a part of a layer has a row of it, and one of the reduced layer
    own = keys.row(keys.step, 0, keys.layer, keys.rank)[is_local]
    every = keys.row(keys.step, 1, keys.layer, keys.rank)[is_part]
    step, reduced, layer, rank = keys.of_row(np.unique(np.concatenate([own, every])))
    place = cells.find(keys.cell(step, layer, reduced, rank))
    step, reduced, layer, rank = (part[place >= 0] for part in (step, reduced, layer, rank))
    out = {name: values[place[place >= 0]] for name, values in whole.items()}
    mean_sq = _taken(whole["sum_sq"], cells.find(keys.cell(step, layer, 1, rank)))
    other = cells.find(keys.cell(step, layer, 0, (1 - rank // keys.block) * keys.block)) if mesh.dp == 2 else None
    other_sq = None if other is None else _taken(whole["sum_sq"], other)
    cosine, kind = _cosines(out, mean_sq, other_sq, alone=mesh.dp == 1)
    if not is_part.all():
        of_slice = _slice_cosines(rows, keys, keys.row(step, 1, layer, rank))
        fill = np.isnan(cosine) & np.isfinite(of_slice)
        cosine, kind = np.where(fill, of_slice, cosine), np.where(fill, _SLICE, kind)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.sqrt(out["sum_sq"] / mean_sq)
    known = ~reduced & ~np.isnan(cosine)
    return {
        "step": step,
        "rank": rank,
        "layer": keys.layers[layer],
        "scope": _SCOPES[reduced.astype(int)],
        **{name: out[name] for name in STATISTICS},
        "cosine": np.where(known, cosine, np.nan),
        "cosine_kind": _KINDS[np.where(known, kind, _UNKNOWN)],
        "norm_ratio": np.where(~reduced & np.isfinite(ratio), ratio, np.nan),
        "shards": out["shards"],
        "replicas": np.where(reduced, mesh.dp, 1),
    }


class _Keys:
    """Rows as numbers: ``step``, ``rank``, ``layer`` (its place in ``layers``, names, ascending), with ``scope``; and
    one number for a combination of them, which grows in the order of the arguments."""

    def __init__(self, rows: Columns, mesh: Mesh) -> None:
        self.step, self.rank = (np.asarray(rows[name], dtype=np.int64) for name in ("step", "rank"))
        self.scope = np.asarray(rows["scope"], dtype=object)
        self.layer, self.layers = _codes(rows["layer"])
        self.block = mesh.replica_size
        self._ranks = int(self.rank.max(initial=0)) + 1
        self._count = max(1, self.layers.size)

    def cell(self, step: np.ndarray, layer: np.ndarray, reduced: np.ndarray | int, rank: np.ndarray) -> np.ndarray:
        """A whole layer: a replica's own, that of ``rank``, or the reduced one."""
        return ((step * self._count + layer) * 2 + reduced) * self._ranks + np.where(reduced, 0, rank // self.block)

    def row(self, step: np.ndarray, reduced: int, layer: np.ndarray, rank: np.ndarray) -> np.ndarray:
        """A row of ``combine``."""
        return ((step * 2 + reduced) * self._count + layer) * self._ranks + rank

    def of_row(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The step, whether reduced, the layer and the rank of a row."""
        rest, rank = np.divmod(number, self._ranks)
        rest, layer = np.divmod(rest, self._count)
        return rest // 2, rest % 2 == 1, layer, rank


class _Places:
    """Where numbers are found again."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The first place of each; -1 where it is not there."""
        if not self._sorted.size:
            return np.full(wanted.size, -1)
        near = np.minimum(np.searchsorted(self._sorted, wanted), self._sorted.size - 1)
        return np.where(self._sorted[near] == wanted, self._order[near], -1)


def _taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values at these places, NaN where there is none (-1)."""
    return np.append(values, np.nan)[places]


def _codes(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which each text is among the distinct ones, and those, ascending."""
    listed = np.asarray(texts, dtype=object).tolist()
    names = sorted(set(listed))
    code = {name: place for place, name in enumerate(names)}
    codes = np.fromiter((code[text] for text in listed), dtype=np.int64, count=len(listed))
    return codes, np.array(names, dtype=object)


def _whole_layers(rows: Columns, cell: np.ndarray, mesh: Mesh) -> tuple[_Places, Columns]:
    """The cells, in which each layer is whole, and what is known of each."""
    once = _once(rows, mesh)
    numbers, place = np.unique(cell[once], return_inverse=True)
    order = np.argsort(place, kind="stable")
    once, starts = once[order], np.searchsorted(place[order], np.arange(numbers.size))

    def total(name: str) -> np.ndarray:  # one part that is not known makes the whole unknown
        values = rows[name][once].astype(float)
        return np.add.reduceat(np.where(values < 0, np.nan, values) if name.endswith("_count") else values, starts)

    sharded, texts = _codes(rows["sharded"])
    shards = np.array([_shards(text, mesh) for text in texts], dtype=np.int64)
    numel, sum_sq = total("numel"), total("sum_sq")
    return _Places(numbers), {
        "sum_sq": sum_sq,
        "dot": total("dot"),
        "norm": np.sqrt(sum_sq),
        "max_abs": np.fmax.reduceat(rows["max_abs"][once], starts),
        "mean": total("sum") / numel,
        "zero_fraction": total("zero_count") / numel,
        "nonfinite_count": total("nonfinite_count"),
        "underflow_fraction": total("underflow_count") / numel,
        "shards": np.maximum.reduceat(shards[sharded[once]], starts),
    }


def _cosines(
    out: Columns, mean_sq: np.ndarray, other_sq: np.ndarray | None, *, alone: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Of local gradients: the cosine, NaN where it is unknown, and how it was had.

    Two replicas without a measured inner product: as the reduced gradient G is the mean of both,
    g_r . G = (4 |G|^2 + |g_r|^2 - |g_other|^2) / 4.
    """
    dot = out["sum_sq"] if alone else out["dot"]
    kind = np.full(dot.size, _EXACT)
    if other_sq is not None:
        kind[np.isnan(dot)] = _NORMS
        dot = np.where(np.isnan(dot), (4 * mean_sq + out["sum_sq"] - other_sq) / 4, dot)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = dot / np.sqrt(out["sum_sq"] * mean_sq)
    return np.where(np.isfinite(cosine), np.clip(cosine, -1, 1), np.nan), kind


def _slice_cosines(rows: Columns, keys: _Keys, wanted: np.ndarray) -> np.ndarray:
    """Cosines over the ranks' own slices, of the rows of ``combine`` whose reduced ones are ``wanted``."""
    number = keys.row(keys.step, 1, keys.layer, keys.rank)
    slices = np.flatnonzero(keys.scope == "slice")
    own = np.flatnonzero(
        (keys.scope == "reduced") & np.isin(np.asarray(rows["sharded"], dtype=object), ("dp", "dp+tp"))
    )
    of_slice, of_own = _Places(number[slices]).find(wanted), _Places(number[own]).find(wanted)
    sum_sq = np.asarray(rows["sum_sq"], dtype=float)
    square = _taken(sum_sq[slices], of_slice) * _taken(sum_sq[own], of_own)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _taken(np.asarray(rows["dot"], dtype=float)[slices], of_slice) / np.sqrt(square)


def once_per_element(raw: pd.DataFrame, mesh: Mesh) -> pd.DataFrame:
    """The rows, with their ranks' coordinates as columns, in which every element is counted once (per replica where
    ``scope`` is "local")."""
    once = raw.iloc[_once(raw, mesh)]
    dp, pp, tp = _coordinates(once["rank"].to_numpy(), mesh)
    return once.assign(dp=dp, pp=pp, tp=tp)


def _coordinates(rank: np.ndarray, mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rest, peer = np.divmod(rank, mesh.peers)
    dp, pp = np.divmod(rest, mesh.pp)
    return dp, pp, peer % mesh.tp


def _once(rows: Mapping[Any, Any], mesh: Mesh) -> np.ndarray:
    """Numbers of rows with each element once: along axes over which a row's elements are not split, the first rank's.

    A local gradient differs between data-parallel ranks, so dp is kept apart there; stages have layers of their own.
    """
    rank = np.asarray(rows["rank"], dtype=np.int64)
    dp, pp, tp = _coordinates(rank, mesh)
    (layer, layers), (scope, scopes), (sharded, texts) = (_codes(rows[n]) for n in ("layer", "scope", "sharded"))
    over = {axis: np.array([axis in text.split("+") for text in texts], dtype=bool)[sharded] for axis in ("dp", "tp")}
    dp = np.where(over["dp"] | (np.asarray(rows["scope"], dtype=object) == "local"), dp, 0)
    number = np.asarray(rows["step"], dtype=np.int64)
    more = ((layer, layers.size), (scope, scopes.size), (sharded, texts.size), (dp, rank.max(initial=0) + 1))
    for part, size in (*more, (pp, mesh.pp), (np.where(over["tp"], tp, 0), mesh.tp)):
        number = number * size + part
    by_rank = np.argsort(rank, kind="stable")
    return by_rank[np.unique(number[by_rank], return_index=True)[1]]


def _shards(sharded: str, mesh: Mesh) -> int:
    return math.prod(getattr(mesh, axis) for axis in filter(None, sharded.split("+")))


def combine_weights(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``weights`` table -> one row per (step, layer), of the whole layer.

    Columns: step, layer, weight_norm, update_norm, update_ratio (update over weight), moment1_norm, moment2_norm (NaN
    where the optimizer has none), shards.
    """
    import pandas as pd

    return pd.DataFrame(weight_columns(rows, mesh))


def weight_columns(rows: Columns, mesh: Mesh) -> Columns:
    """``combine_weights`` as columns, by step and layer."""
    raw = {name: np.asarray(values) for name, values in rows.items()}
    raw["scope"] = np.full(raw["step"].size, "weights", dtype=object)
    once = {name: values[_once(raw, mesh)] for name, values in raw.items()}
    (layer, layers), (sharded, texts) = (_codes(once[name]) for name in ("layer", "sharded"))
    numbers, place = np.unique(once["step"].astype(np.int64) * max(1, layers.size) + layer, return_inverse=True)

    def norm(name: str) -> np.ndarray:  # NaN only where no part is known
        values = once[name].astype(float)
        known = ~np.isnan(values)
        total = np.bincount(place[known], weights=values[known], minlength=numbers.size)
        return np.sqrt(np.where(np.bincount(place[known], minlength=numbers.size) > 0, total, np.nan))

    shards = np.zeros(numbers.size, dtype=np.int64)
    np.maximum.at(shards, place, np.array([_shards(text, mesh) for text in texts], dtype=np.int64)[sharded])
    weight, update = norm("weight_sq"), norm("update_sq")
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = update / weight
    return {
        "step": numbers // max(1, layers.size),
        "layer": layers[numbers % max(1, layers.size)],
        "weight_norm": weight,
        "update_norm": update,
        "update_ratio": ratio,
        "moment1_norm": norm("moment1_sq"),
        "moment2_norm": norm("moment2_sq"),
        "shards": shards,
    }


def combine_histograms(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``histograms`` table -> one row per (step, rank, layer, scope) and bucket, of the whole layer.

    Columns: step, rank, layer, scope, exponent, count. ``count`` elements have a magnitude in
    [2**exponent, 2**(exponent + 1)); zeros and non-finite elements are in ``combine``. ``rank`` is the first rank of
    the replica that holds the layer; scope "reduced" has one row per bucket.
    """
    import pandas as pd

    columns = ["step", "rank", "layer", "scope", "exponent", "count"]
    raw = pd.DataFrame(rows)
    if raw.empty:
        return pd.DataFrame(columns=columns)
    unique = once_per_element(raw, mesh)
    unique["group"] = unique["dp"].where(unique["scope"] == "local", 0)
    unique["rank"] = unique.groupby(_KEYS)["rank"].transform("min")
    unique["exponent"] = [
        list(range(first, first + len(counts)))
        for first, counts in zip(unique["first_exponent"], unique["counts"], strict=True)
    ]
    unique["count"] = [list(counts) for counts in unique["counts"]]
    long = unique[["step", "rank", "layer", "scope", "exponent", "count"]].explode(["exponent", "count"])
    long = long.dropna(subset=["exponent"]).astype({"exponent": int, "count": int})
    return long.groupby(columns[:5], as_index=False, sort=True)["count"].sum()

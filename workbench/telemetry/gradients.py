"""Combining the parts of gradients that ranks logged: exact sums, pure functions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from workbench.mesh import AXES, Mesh
from workbench.telemetry.store import Columns

STATISTICS = ("norm", "max_abs", "mean", "zero_fraction", "nonfinite_count", "underflow_fraction")
COMPARISONS = ("cosine", "cosine_kind", "norm_ratio")
_KEYS = ["step", "layer", "scope", "group"]


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
    columns = ["step", "rank", "layer", "scope", *STATISTICS, *COMPARISONS, "shards", "replicas"]
    if not rows["step"].size:
        return pd.DataFrame(columns=columns)
    raw = _placed(pd.DataFrame(rows), mesh)
    slices = raw[raw["scope"] == "slice"]
    raw = raw[raw["scope"] != "slice"]
    whole = _whole_layers(raw, mesh)
    holders = raw[["step", "layer", "scope", "rank", "dp"]].drop_duplicates()
    reduced = holders.drop_duplicates(["step", "layer", "rank"]).assign(scope="reduced", group=0)
    local = holders[holders["scope"] == "local"].assign(group=lambda f: f["dp"])
    merged = pd.concat([local, reduced]).merge(whole, on=_KEYS)
    merged = _compared(merged, whole, mesh)
    if len(slices):
        merged = _by_slices(merged, slices, raw)
    return merged.sort_values(["step", "scope", "layer", "rank"], ignore_index=True)[columns]


def _placed(raw: pd.DataFrame, mesh: Mesh) -> pd.DataFrame:
    """With a column per mesh axis: the coordinates of the rank."""
    rank = raw["rank"].to_numpy()
    rest, tp = np.divmod(rank, mesh.tp)
    dp, pp = np.divmod(rest, mesh.pp)
    return raw.assign(dp=dp, pp=pp, tp=tp)


def _whole_layers(raw: pd.DataFrame, mesh: Mesh) -> pd.DataFrame:
    """One row per (step, layer, scope, group); ``group`` is the replica of a local gradient, 0 otherwise."""
    unique = _once(raw)
    unique["group"] = unique["dp"].where(unique["scope"] == "local", 0)
    for column in ("zero_count", "nonfinite_count", "underflow_count"):
        unique[column] = unique[column].where(unique[column] >= 0).astype(float)  # -1: not counted
    parts = unique.groupby(_KEYS, sort=True)
    summed = ["numel", "sum", "sum_sq", "zero_count", "nonfinite_count", "underflow_count", "dot"]
    whole = parts[summed].sum(min_count=1)
    for column in summed:
        if unique[column].isna().any():  # one part that is not known makes the whole unknown
            whole[column] = whole[column].where(~unique[column].isna().groupby([unique[k] for k in _KEYS]).any())
    whole["max_abs"] = parts["max_abs"].max()
    whole["norm"] = whole["sum_sq"] ** 0.5
    whole["mean"] = whole["sum"] / whole["numel"]
    whole["zero_fraction"] = whole["zero_count"] / whole["numel"]
    whole["underflow_fraction"] = whole["underflow_count"] / whole["numel"]
    shards = {text: _shards(text, mesh) for text in unique["sharded"].unique()}
    whole["shards"] = unique["sharded"].map(shards).groupby([unique[k] for k in _KEYS]).max()
    whole = whole.reset_index()
    whole["replicas"] = np.where(whole["scope"] == "local", 1, mesh.dp)
    return whole


def _compared(merged: pd.DataFrame, whole: pd.DataFrame, mesh: Mesh) -> pd.DataFrame:
    """With cosine, its kind and the norm ratio of the local rows.

    Two replicas without a measured inner product: as the reduced gradient G is the mean of both,
    g_r . G = (4 |G|^2 + |g_r|^2 - |g_other|^2) / 4.
    """
    mean = whole[whole["scope"] == "reduced"].set_index(["step", "layer"])["sum_sq"].rename("reduced_sq")
    merged = merged.join(mean, on=["step", "layer"])
    is_local = merged["scope"] == "local"
    dot = merged["dot"].where(is_local)
    kind = pd.Series(np.where(dot.notna(), "exact", ""), index=merged.index)
    if mesh.dp == 1:
        dot, kind = merged["sum_sq"].where(is_local), kind.where(~is_local, "exact")
    elif mesh.dp == 2:
        squares = whole[whole["scope"] == "local"][["step", "layer", "group", "sum_sq"]]
        other = squares.assign(group=1 - squares["group"]).rename(columns={"sum_sq": "other_sq"})
        merged = merged.merge(other, on=["step", "layer", "group"], how="left")
        follows = (4 * merged["reduced_sq"] + merged["sum_sq"] - merged["other_sq"]) / 4
        fill = is_local & dot.isna() & follows.notna()
        dot, kind = dot.where(~fill, follows), kind.where(~fill, "norms")
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = dot / np.sqrt(merged["sum_sq"] * merged["reduced_sq"])
        ratio = np.sqrt(merged["sum_sq"] / merged["reduced_sq"])
    cosine = cosine.where(np.isfinite(cosine)).clip(-1, 1)
    merged["cosine"] = cosine
    merged["cosine_kind"] = kind.where(cosine.notna(), "")
    merged["norm_ratio"] = ratio.where(is_local & np.isfinite(ratio))
    return merged


def _by_slices(merged: pd.DataFrame, slices: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """Fill cosines that are not known with those of the ranks' own slices."""
    keys = ["step", "rank", "layer"]
    own = raw[(raw["scope"] == "reduced") & (raw["sharded"] == "dp")][[*keys, "sum_sq"]]
    both = slices[[*keys, "sum_sq", "dot"]].merge(own, on=keys, suffixes=("", "_reduced"))
    with np.errstate(invalid="ignore", divide="ignore"):
        both["of_slice"] = both["dot"] / np.sqrt(both["sum_sq"] * both["sum_sq_reduced"])
    merged = merged.merge(both[[*keys, "of_slice"]], on=keys, how="left")
    fill = (merged["scope"] == "local") & merged["cosine"].isna() & np.isfinite(merged["of_slice"])
    merged["cosine"] = merged["cosine"].where(~fill, merged["of_slice"])
    merged["cosine_kind"] = merged["cosine_kind"].where(~fill, "slice")
    return merged


def once_per_element(raw: pd.DataFrame, mesh: Mesh) -> pd.DataFrame:
    """The rows, with their ranks' coordinates as columns, in which every element is counted once (per replica where
    ``scope`` is "local")."""
    return raw if raw.empty else _once(_placed(raw, mesh))


def _once(raw: pd.DataFrame) -> pd.DataFrame:
    """Each element once: along axes over which a row's elements are not split, keep the first coordinate present.

    A local gradient differs between data-parallel ranks, so dp is kept apart there.
    """
    kept = []
    for (scope, sharded), rows in raw.groupby(["scope", "sharded"], sort=False):
        apart = set(sharded.split("+")) | ({"dp"} if scope == "local" else set()) | {"pp"}
        keys = ["step", "layer", *[axis for axis in AXES if axis in apart]]
        kept.append(rows.sort_values("rank").drop_duplicates(keys))
    return pd.concat(kept)


def _shards(sharded: str, mesh: Mesh) -> int:
    return math.prod(getattr(mesh, axis) for axis in filter(None, sharded.split("+")))


def combine_weights(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``weights`` table -> one row per (step, layer), of the whole layer.

    Columns: step, layer, weight_norm, update_norm, update_ratio (update over weight), moment1_norm, moment2_norm (NaN
    where the optimizer has none), shards.
    """
    columns = ["step", "layer", "weight_norm", "update_norm", "update_ratio", "moment1_norm", "moment2_norm", "shards"]
    raw = pd.DataFrame(rows)
    if raw.empty:
        return pd.DataFrame(columns=columns)
    unique = _once(_placed(raw.assign(scope="weights"), mesh))
    squares = {"weight_sq": "weight_norm", "update_sq": "update_norm"}
    squares |= {"moment1_sq": "moment1_norm", "moment2_sq": "moment2_norm"}
    parts = unique.groupby(["step", "layer"], sort=True)
    whole = (parts[list(squares)].sum(min_count=1) ** 0.5).rename(columns=squares)
    with np.errstate(invalid="ignore", divide="ignore"):
        whole["update_ratio"] = whole["update_norm"] / whole["weight_norm"]
    whole["shards"] = parts["sharded"].agg(lambda axes: max(_shards(text, mesh) for text in set(axes)))
    return whole.reset_index()[columns]


def combine_histograms(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``histograms`` table -> one row per (step, rank, layer, scope) and bucket, of the whole layer.

    Columns: step, rank, layer, scope, exponent, count. ``count`` elements have a magnitude in
    [2**exponent, 2**(exponent + 1)); zeros and non-finite elements are in ``combine``. ``rank`` is the first rank of
    the replica that holds the layer; scope "reduced" has one row per bucket.
    """
    columns = ["step", "rank", "layer", "scope", "exponent", "count"]
    raw = pd.DataFrame(rows)
    if raw.empty:
        return pd.DataFrame(columns=columns)
    unique = _once(_placed(raw, mesh))
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

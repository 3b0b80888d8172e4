"""Combining the parts of gradients that ranks logged: exact sums, pure functions."""

from __future__ import annotations

import pandas as pd

from workbench.mesh import AXES, Mesh
from workbench.telemetry.store import Columns

STATISTICS = ("norm", "max_abs", "mean", "zero_fraction", "nonfinite_count")


def combine(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``gradients`` table -> one row per (step, rank, layer, scope).

    Columns: step, rank, layer, scope, norm (L2), max_abs, mean, zero_fraction, nonfinite_count, shards, replicas. Scope
    "local" is the gradient of a data-parallel replica's own share of the batch, scope "reduced" the averaged one; both
    are of the *whole* layer as the user wrote it: shards are summed, replicated parts counted once, and every rank that
    holds a part has a row with the same numbers. ``shards``: over how many ranks some of the elements are split;
    ``replicas``: how many data-parallel ranks hold the same values.
    """
    columns = ["step", "rank", "layer", "scope", *STATISTICS, "shards", "replicas"]
    raw = pd.DataFrame(rows)
    if raw.empty:
        return pd.DataFrame(columns=columns)
    coordinates = [mesh.coordinates(int(rank)) for rank in raw["rank"]]
    for axis in AXES:
        raw[axis] = [getattr(here, axis) for here in coordinates]
    unique = _once(raw)
    unique["group"] = unique["dp"].where(unique["scope"] == "local", 0)
    parts = unique.groupby(["step", "layer", "scope", "group"], sort=True)
    whole = parts.agg(
        numel=("numel", "sum"),
        sum=("sum", "sum"),
        sum_sq=("sum_sq", "sum"),
        max_abs=("max_abs", "max"),
        zero_count=("zero_count", "sum"),
        nonfinite_count=("nonfinite_count", "sum"),
    )
    whole["norm"] = whole["sum_sq"] ** 0.5
    whole["mean"] = whole["sum"] / whole["numel"]
    whole["zero_fraction"] = whole["zero_count"] / whole["numel"]
    whole["shards"] = parts["sharded"].agg(lambda axes: max(_shards(text, mesh) for text in set(axes)))
    whole = whole.reset_index()
    whole["replicas"] = [1 if scope == "local" else mesh.dp for scope in whole["scope"]]
    holders = raw[["step", "layer", "scope", "rank", "dp"]].drop_duplicates()
    reduced = holders.drop_duplicates(["step", "layer", "rank"]).assign(scope="reduced", group=0)
    local = holders[holders["scope"] == "local"].assign(group=lambda f: f["dp"])
    merged = pd.concat([local, reduced]).merge(whole, on=["step", "layer", "scope", "group"])
    return merged.sort_values(["step", "scope", "layer", "rank"], ignore_index=True)[columns]


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
    count = 1
    for axis in filter(None, sharded.split("+")):
        count *= getattr(mesh, axis)
    return count

"""Combining what ranks logged of the inside of a model: exact sums over shards, replicas and micro-batches.

Pure functions. A row counts once per element: along tensor-parallel ranks that all hold the same, the first rank's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh

#: of outputs and gradients, what ``combine`` and ``whole_batch`` compute
STATISTICS = (
    "norm",
    "rms",
    "max_abs",
    "mean",
    "zero_fraction",
    "nonfinite_count",
    "underflow_fraction",
    "overflow_fraction",
)
_SUMS = ("numel", "sum", "sum_sq", "zero_count", "nonfinite_count", "underflow_count", "overflow_count")


def combine(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``activations`` table -> one row per step, replica, layer, ``what`` and micro-batch.

    Columns: step, rank (the first of the replica that holds the layer), layer, what ("output", "gradient"),
    micro_batch (-1: the whole step), numel, norm (L2), rms (norm over the square root of numel), max_abs, mean,
    zero_fraction, nonfinite_count, underflow_fraction, overflow_fraction, all of the *whole* layer as the user wrote
    it: shards are added up, and what several ranks hold is counted once. A gradient is that of the loss of the global
    batch with respect to the output. Norm, mean and max_abs are over finite elements.
    """
    found = _grouped(rows, mesh, ("step", "dp", "layer", "what", "micro_batch"))
    return found[["step", "rank", "layer", "what", "micro_batch", "numel", *STATISTICS]]


def whole_batch(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """``combine``, with all replicas and micro-batches together: one row per step, layer and ``what``, as one process
    with the global batch would have it. Without the columns rank and micro_batch."""
    found = _grouped(rows, mesh, ("step", "layer", "what"))
    return found[["step", "layer", "what", "numel", *STATISTICS]]


def _grouped(rows: Columns, mesh: Mesh, keys: Sequence[str]) -> pd.DataFrame:
    once = _once(rows, mesh, ("step", "layer", "what", "micro_batch"))
    aggregated: dict[str, Any] = {**dict.fromkeys(_SUMS, "sum"), "max_abs": "max", "rank": "min"}
    whole = once.groupby([*keys], sort=True).agg(aggregated).reset_index()
    numel = whole["numel"]
    whole["norm"] = np.sqrt(whole["sum_sq"])
    whole["rms"] = np.sqrt(whole["sum_sq"] / numel)
    whole["mean"] = whole["sum"] / numel
    for name in ("zero", "underflow", "overflow"):
        whole[f"{name}_fraction"] = whole[f"{name}_count"] / numel
    return whole


def _once(rows: Mapping[str, np.ndarray], mesh: Mesh, keys: Sequence[str]) -> pd.DataFrame:
    """The rows in which every element is counted once, with a column ``dp``."""
    raw = pd.DataFrame(dict(rows))
    rest, peer = np.divmod(raw["rank"].to_numpy(dtype=np.int64), mesh.peers)
    raw["dp"] = rest // mesh.pp
    raw["tp"] = np.where(raw["sharded"] == "tp", peer % mesh.tp, 0) if "sharded" in raw else 0
    kept = [*keys, "dp", "tp", *(["sharded"] if "sharded" in raw else [])]
    return raw.sort_values("rank", kind="stable").drop_duplicates(kept)


def combine_attention(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``attention`` table -> one row per step and layer, of all heads, replicas and micro-batches.

    Columns: step, layer, queries (that were looked at), entropy (mean over queries, in nats), entropy_share (of what
    it would be if every query attended to all of its keys alike: 1 is uniform, 0 a single key; NaN where no query has
    more than one key), max_logit.
    """
    once = _once(rows, mesh, ("step", "layer", "micro_batch"))
    aggregated = {"queries": "sum", "entropy_sum": "sum", "uniform_sum": "sum", "max_logit": "max"}
    whole = once.groupby(["step", "layer"], sort=True).agg(aggregated).reset_index()
    with np.errstate(invalid="ignore", divide="ignore"):
        whole["entropy"] = whole["entropy_sum"] / whole["queries"]
        whole["entropy_share"] = whole["entropy_sum"] / whole["uniform_sum"].where(whole["uniform_sum"] > 0)
    return whole[["step", "layer", "queries", "entropy", "entropy_share", "max_logit"]]


def combine_routers(rows: Columns, mesh: Mesh) -> pd.DataFrame:
    """Rows of the ``routers`` table -> one row per step and router, of all replicas and micro-batches.

    Columns: step, layer, tokens, entropy (mean over tokens, in nats), load (a list: the share of all choices that fell
    on each expert), max_load (the largest of them, times the number of experts: 1 is even), idle (experts that no token
    chose).
    """
    columns = ["step", "layer", "tokens", "entropy", "load", "max_load", "idle"]
    found = []
    once = _once(rows, mesh, ("step", "layer", "micro_batch"))
    for (step, layer), group in once.groupby(["step", "layer"], sort=True):
        load = np.sum([np.asarray(each, dtype=float) for each in group["load"]], axis=0)
        share = load / load.sum()
        tokens = int(group["tokens"].sum())
        entropy = float(group["entropy_sum"].sum()) / tokens
        row = (step, layer, tokens, entropy, share.tolist(), float(share.max() * share.size), int((load == 0).sum()))
        found.append(row)
    return pd.DataFrame(found, columns=columns)

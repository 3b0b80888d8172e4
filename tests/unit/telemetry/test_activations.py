"""What ranks saw inside a model is added up exactly: shards once each, copies once, replicas and micro-batches all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.core.records import columns_of
from workbench.telemetry.inside.activations import combine, combine_attention, combine_routers, whole_batch


def columns(table: str, rows: list[dict[str, Any]]) -> Columns:
    return {name: np.array([row[name] for row in rows]) for name in columns_of(table)}


def part(rank: int, values: np.ndarray, *, sharded: str, micro_batch: int = -1, layer: str = "a") -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    return {
        "step": 1, "rank": rank, "layer": layer, "what": "output", "micro_batch": micro_batch, "sharded": sharded,
        "numel": values.size, "sum": finite.sum(), "sum_sq": (finite**2).sum(), "max_abs": np.abs(finite).max(),
        "zero_count": (values == 0).sum(), "nonfinite_count": values.size - finite.size, "underflow_count": 1,
        "overflow_count": 0,
    }  # fmt: skip


def test_shards_are_added_and_copies_counted_once() -> None:
    values = np.random.default_rng(0).normal(size=(2, 2, 12))  # replica, tensor-parallel rank
    values[0, 0, :3] = 0
    values[1, 1, 0] = np.inf
    mesh = Mesh(dp=2, pp=1, tp=2)
    rows = [part(2 * dp + tp, values[dp, tp], sharded="tp") for dp in (0, 1) for tp in (0, 1)]
    rows += [part(2 * dp + tp, values[dp, 0], sharded="", layer="b") for dp in (0, 1) for tp in (0, 1)]
    found = combine(columns("activations", rows), mesh).set_index(["layer", "rank"])
    whole = whole_batch(columns("activations", rows), mesh).set_index("layer")
    for layer, of in (("a", values), ("b", values[:, :1])):
        for dp in (0, 1):
            finite = of[dp][np.isfinite(of[dp])]
            row = found.loc[layer, 2 * dp]
            assert row["numel"] == of[dp].size and row["norm"] == pytest.approx(np.linalg.norm(finite))
            assert row["mean"] == pytest.approx(finite.sum() / of[dp].size)
        finite = of[np.isfinite(of)]
        row = whole.loc[layer]
        assert row["norm"] == pytest.approx(np.linalg.norm(finite)) and row["max_abs"] == np.abs(finite).max()
        assert row["rms"] == pytest.approx(np.sqrt((finite**2).sum() / of.size))
        assert row["zero_fraction"] == (of == 0).mean() and row["nonfinite_count"] == of.size - finite.size
        assert row["underflow_fraction"] == of.shape[0] * of.shape[1] / of.size


def test_micro_batches_are_added() -> None:
    values = np.random.default_rng(1).normal(size=(3, 8))
    rows = [part(0, one, sharded="", micro_batch=index) for index, one in enumerate(values)]
    assert combine(columns("activations", rows), Mesh(dp=1, pp=1, tp=1))["micro_batch"].tolist() == [0, 1, 2]
    (whole,) = whole_batch(columns("activations", rows), Mesh(dp=1, pp=1, tp=1)).to_dict("records")
    assert whole["norm"] == pytest.approx(np.linalg.norm(values)) and whole["numel"] == 24


def test_heads_and_replicas_of_an_attention_are_averaged() -> None:
    rows = [
        {"step": 1, "rank": rank, "layer": "a", "micro_batch": -1, "sharded": "tp", "queries": 10,
         "entropy_sum": 10.0 * (rank + 1), "uniform_sum": 40.0, "max_logit": float(rank)}
        for rank in range(4)
    ]  # fmt: skip
    (row,) = combine_attention(columns("attention", rows), Mesh(dp=2, pp=1, tp=2)).to_dict("records")
    assert (row["queries"], row["entropy"], row["entropy_share"], row["max_logit"]) == (40, 2.5, 0.625, 3.0)


def test_the_load_of_experts_is_that_of_all_replicas() -> None:
    loads = np.array([[6, 2, 0, 0], [4, 4, 0, 0]])
    rows: dict[str, list[Any]] = {
        "step": [1, 1], "rank": [0, 1], "layer": ["gate"] * 2, "micro_batch": [-1, -1], "tokens": [4, 4],
        "top_k": [2, 2], "load": list(loads), "entropy_sum": [2.0, 4.0],
    }  # fmt: skip
    found = {name: np.array(values) for name, values in rows.items() if name != "load"}
    found["load"] = np.empty(2, dtype=object)
    found["load"][:] = list(loads)
    (row,) = combine_routers(found, Mesh(dp=2, pp=1, tp=1)).to_dict("records")
    assert row["load"] == [0.625, 0.375, 0, 0] and row["max_load"] == 2.5 and row["idle"] == 2
    assert row["entropy"] == 0.75 and row["tokens"] == 8


def test_a_run_without_them_has_empty_tables() -> None:
    mesh = Mesh(dp=2, pp=1, tp=1)
    assert whole_batch(columns("activations", []), mesh).empty and combine(columns("activations", []), mesh).empty
    assert (
        combine_attention(columns("attention", []), mesh).empty and combine_routers(columns("routers", []), mesh).empty
    )

"""What is logged of gradients equals float64 NumPy figures of a plain backward pass on the same samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workbench.config import TrainSpec
from workbench.engine.gradients import GradientCollector
from workbench.engine.strategies.base import GradientPart
from workbench.telemetry.gradients import combine

TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}
#: relative error in fp32; in fp16 and bf16 the activations and gradients themselves are rounded
FP32, FP16, BF16 = 2e-5, 2e-2, 1e-1

CASES = [
    *[(2, model, {"plugin": plugin}, FP32) for plugin in ("ddp", "zero1", "zero2") for model in ("gpt2", "plain")],
    *[(2, model, plan, FP32) for plan in (TP, PP) for model in ("llama", "gpt2", "tied")],
    (2, "plain", {"plugin": "hybrid"}, FP32),
    (2, "vit", TP, FP32),
    (4, "llama", TP, FP32),
    (4, "gpt2", {**TP, **PP}, FP32),
    (4, "gpt2", PP, FP32),
    (4, "plain", {"plugin": "zero1"}, FP32),
    *[(2, "gpt2", {**plan, "accumulate": 2}, FP32) for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, TP, PP)],
    *[(2, "gpt2", {**plan, "precision": "fp16"}, FP16) for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, TP, PP)],
    (2, "gpt2", {"plugin": "zero2", "accumulate": 2}, FP32),
    (2, "gpt2", {"plugin": "zero2", "precision": "bf16"}, BF16),
]


def _name(case) -> str:
    ranks, model, options, _ = case
    return "-".join([str(ranks), model, *[f"{key}={value}" for key, value in options.items()]])


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_logged_statistics_are_those_of_one_process(pool, case):
    ranks, model, options, tolerance = case
    mesh = TrainSpec.from_options({"ranks": ranks, **options}).plan.mesh
    *of_shards, of_all = pool.run(1, "tests.engine.plain:gradients", model=model, shards=mesh.dp)[0]
    found = pool.run(ranks, "tests.engine.boosted:gradients", model=model, options=options)

    table = combine({key: [row[key] for rank in found for row in rank["rows"]] for key in found[0]["rows"][0]}, mesh)
    assert set(table["layer"]) == set(of_all), "layers are named as in the user's own model"
    for row in table.to_dict("records"):
        layers = of_all if row["scope"] == "reduced" else of_shards[mesh.coordinates(row["rank"]).dp]
        _compare(row, layers[row["layer"]], tolerance)
    seen = table[table["scope"] == "local"].groupby("layer")["rank"].count()
    assert (seen >= mesh.dp).all(), "each replica shows its local gradient of every layer"

    norm_sq = sum(layer["norm"] ** 2 for layer in of_all.values())
    assert sum(rank["grad_sq"] for rank in found) == pytest.approx(norm_sq, rel=2 * tolerance)
    assert {layer for rank in found for layer in rank["second"]} == set(of_all), "watching works at any step"


def _compare(row: dict, expected: dict, tolerance: float) -> None:
    where = f"{row['scope']} {row['layer']!r} on rank {row['rank']}"
    scale = expected["norm"]
    assert row["norm"] == pytest.approx(scale, rel=tolerance, abs=1e-7), where
    assert row["max_abs"] == pytest.approx(expected["max_abs"], rel=tolerance, abs=1e-2 * tolerance * scale), where
    assert row["mean"] == pytest.approx(expected["mean"], rel=tolerance, abs=tolerance * scale), where
    if tolerance == FP32:  # less precise gradients underflow to more zeros
        # the gradient of attention's key bias is zero but for rounding
        slack = 0.05 if row["layer"].endswith(("c_attn", "attention.key")) else 1e-9
        assert row["zero_fraction"] == pytest.approx(expected["zero_fraction"], abs=slack), where
    assert row["nonfinite_count"] == 0, where


class TestCollector:
    @pytest.fixture(autouse=True)
    def _one_thread(self):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def test_only_finite_elements_are_summed(self):
        collector = GradientCollector()
        values = torch.tensor([1.0, -3.0, 0.0, math.nan, math.inf, -math.inf])
        collector.observe(GradientPart("a", values, "", 1.0))
        (record,) = collector.records(7, 1, "local")
        assert (record.step, record.rank, record.layer, record.scope) == (7, 1, "a", "local")
        assert (record.numel, record.sum, record.max_abs) == (6, -2.0, 3.0)
        assert record.sum_sq == pytest.approx(10.0, rel=1e-12)
        assert (record.zero_count, record.nonfinite_count) == (1, 3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_half_precision_does_not_overflow(self, dtype):
        values = torch.full((4096,), 60000.0, dtype=dtype)
        collector = GradientCollector()
        collector.observe(GradientPart("a", values, "tp", 1024.0))
        (record,) = collector.records(1, 0, "local")
        exact = values.double().numpy() / 1024
        assert record.sum == pytest.approx(exact.sum(), rel=1e-12)
        assert record.sum_sq == pytest.approx(np.sum(exact**2), rel=1e-12)
        assert record.max_abs == exact.max()

    def test_parts_of_a_layer_are_added_and_kinds_of_sharding_kept_apart(self):
        collector = GradientCollector()
        for sharded, value in (("tp", 1.0), ("", 2.0), ("tp", -3.0)):
            collector.observe(GradientPart("layer", torch.full((2,), value), sharded))
        records = {record.sharded: record for record in collector.records(1, 0, "reduced")}
        assert (records["tp"].numel, records["tp"].sum, records["tp"].max_abs) == (4, -4.0, 3.0)
        assert records[""].sum_sq == pytest.approx(8.0, rel=1e-12)
        assert collector.records(2, 0, "reduced") == [], "taking the records empties it"

    def test_a_part_without_elements_says_nothing(self):
        collector = GradientCollector()
        collector.observe(GradientPart("layer", torch.empty(0), "dp"))
        assert collector.records(1, 0, "reduced") == []

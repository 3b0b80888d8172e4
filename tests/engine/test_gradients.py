"""What is logged of gradients equals float64 NumPy figures of a plain backward pass on the same samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.engine.models import BATCH
from tests.engine.rank_pool import COMPILER
from workbench.core.config import TrainSpec
from workbench.engine.base.parts import GradientPart
from workbench.engine.watch.torch import tensor_statistics as statistics
from workbench.engine.watch.torch.gradient_statistics import GradientCollector
from workbench.telemetry.gradients import combine, combine_histograms
from workbench.telemetry.noise import noise_scale

TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}
TORCH = {"framework": "torch", "plugin": "ddp"}
STAGES = {**PP, "framework": "torch"}
FSDP = {"framework": "torch", "plugin": "fsdp"}
CONTEXT = {"framework": "torch", "plugin": "context", "cp": 2}
MPI, MEGATRON = [{"framework": name, "plugin": "ddp"} for name in ("mpi", "megatron")]
ZERO_1, ZERO_2, ZERO_3 = [{"framework": "deepspeed", "plugin": f"zero{stage}"} for stage in (1, 2, 3)]
#: relative error in fp32; in fp16 and bf16 the activations and gradients themselves are rounded
FP32, FP16, BF16 = 2e-5, 2e-2, 1e-1

CASES = [
    *[(2, model, {"plugin": plugin}, FP32) for plugin in ("ddp", "zero1", "zero2") for model in ("gpt2", "plain")],
    *[(2, model, plan, FP32) for plan in (TP, PP) for model in ("llama", "gpt2", "tied")],
    (2, "plain", {"plugin": "hybrid"}, FP32),
    (2, "vit", TP, FP32),
    *[(2, "cnn", plan, FP32) for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, TORCH, FSDP)],
    (4, "cnn", {"plugin": "zero2"}, FP32),
    (4, "llama", TP, FP32),
    (4, "gpt2", {**TP, **PP}, FP32),
    (4, "gpt2", PP, FP32),
    (4, "plain", {"plugin": "zero1"}, FP32),
    *[(2, "gpt2", {**plan, "accumulate": 2}, FP32) for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, TP, PP)],
    *[
        (2, "gpt2", {**plan, "precision": "fp16"}, FP16)
        for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, {"plugin": "zero2"}, TP, PP)
    ],
    (2, "gpt2", {"plugin": "zero2", "accumulate": 2}, FP32),  # which reduces every piece: it has no ``no_sync``
    (2, "gpt2", {"plugin": "zero2", "precision": "bf16"}, BF16),
    (2, "tied", {"plugin": "gemini", "precision": "bf16", "accumulate": 2}, BF16),
    (2, "gpt2", {"plugin": "gemini", "precision": "fp16"}, FP16),
    *[(2, model, TORCH, FP32) for model in ("gpt2", "plain")],
    (4, "plain", {**TORCH, "accumulate": 2}, FP32),
    (2, "gpt2", {**TORCH, "precision": "fp16"}, FP16),
    (2, "tied", {**STAGES, "accumulate": 2}, FP32),
    (4, "gpt2", {**STAGES, "schedule": "zero-bubble"}, FP32),
    (4, "gpt2", {"plugin": "zero1", "tp": 2, "accumulate": 2}, FP32),
    (4, "gpt2", {"plugin": "zero2", "tp": 2}, FP32),
    (4, "tied", {**PP, "plugin": "zero1"}, FP32),
    (4, "llama", {"plugin": "hybrid", "tp": 2, "sequence_parallel": "split_gather"}, FP32),
    (4, "tied", {**STAGES, "tp": 2}, FP32),
    (2, "gpt2", FSDP, FP32),
    (4, "plain", {**FSDP, "accumulate": 2, "replicate": 2}, FP32),
    (2, "gpt2", {**FSDP, "precision": "fp16", "accumulate": 2}, FP16),
    (4, "gpt2", {**FSDP, "tp": 2}, FP32),
    (2, "gpt2", {**CONTEXT, "accumulate": 2}, FP32),
    (4, "llama", CONTEXT, FP32),
    (2, "cnn", ZERO_1, FP32),
    (2, "gpt2", {**ZERO_1, "accumulate": 2}, FP32),
    (4, "plain", ZERO_2, FP32),
    (2, "gpt2", {**ZERO_3, "accumulate": 2, "offload": True}, FP32),
    (4, "plain", ZERO_3, FP32),
    (2, "plain", {**ZERO_2, "precision": "fp16"}, FP16),
    (2, "gpt2", {**MPI, "accumulate": 2}, FP32),
    (4, "tied", MPI, FP32),
    (2, "gpt2", {**MEGATRON, "accumulate": 2}, FP32),
    (4, "tied", MEGATRON, FP32),
    (4, "gpt2", {**MEGATRON, "plugin": "hybrid", "tp": 2}, FP32),
    (4, "tied", {**MEGATRON, "plugin": "hybrid", "pp": 2, "micro_batches": 2}, FP32),
]


#: torch.compile, activation checkpointing and tied weights, each under each plugin
WRAPPED = [
    *[("compile", "plain", {"plugin": plugin}) for plugin in ("ddp", "zero1", "zero2", "hybrid")],
    *[("compile", "shallow", plan) for plan in (TP, PP)],  # each layer takes seconds to compile
    *[
        ("checkpoint", "llama", plan)
        for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, {"plugin": "zero2"}, TP, PP, STAGES)
    ],
    *[("", "tied", {"plugin": plugin}) for plugin in ("ddp", "zero1", "zero2")],
    ("compile", "plain", FSDP),
    ("checkpoint", "llama", FSDP),
    ("", "tied", FSDP),
    ("checkpoint", "llama", CONTEXT),
]


def _name(case) -> str:
    ranks, model, options, _ = case
    return "-".join([str(ranks), model, *[f"{key}={value}" for key, value in options.items()]])


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_logged_statistics_are_those_of_one_process(run_kept, alone, case):
    ranks, model, options, _ = case
    found = run_kept(ranks, "tests.engine.boosted:gradients", model=model, options=options)
    _check(alone, case, found)


def test_all_that_ranks_hold_is_the_gradient_once_in_each_group_of_ranks(pool, alone):
    options = {**FSDP, "replicate": 2, "accumulate": 2}
    found = pool.run(4, "tests.engine.boosted:held_gradients", model="plain", options=options)
    for layer, expected in alone("plain", 1)[-1].items():
        elements, squares = (sum(rank[layer][which] for rank in found) for which in (0, 1))
        assert elements == 2 * expected["numel"]
        assert squares / 2 == pytest.approx(expected["norm"] ** 2, rel=FP32)


@pytest.fixture(scope="module")
def wrapped(pool) -> list[list[dict]]:
    """What each rank found in each of ``WRAPPED``; in one process a rank, which imports the compiler once."""
    cases = [{"wrap": wrap, "model": model, "options": options} for wrap, model, options in WRAPPED]
    return pool.run(2, "tests.engine.boosted:several_gradients", cases=cases, timeout_s=300.0, imports=[COMPILER])


@pytest.mark.parametrize("number", range(len(WRAPPED)), ids=lambda number: "-".join(map(str, WRAPPED[number])))
def test_so_they_are_of_compiled_checkpointed_and_tied_models(alone, wrapped, number):
    _, model, options = WRAPPED[number]
    _check(alone, (2, model, options, FP32), [rank[number] for rank in wrapped])


@pytest.fixture(scope="module")
def alone(run_alone):
    """Figures of one process in float64, of each model and number of shards once."""
    return lambda model, shards: run_alone("tests.engine.plain:gradients", model=model, shards=shards)


def _check(alone, case: tuple, found: list[dict]) -> None:
    ranks, model, options, tolerance = case
    mesh = TrainSpec.from_options({"ranks": ranks, **options}).plan.mesh
    *of_shards, of_all = alone(model, mesh.dp)
    table = combine(_columns(found, "rows"), mesh)
    assert set(table["layer"]) == set(of_all), "layers are named as in the user's own model"
    is_sliced = options["plugin"] in ("zero2", "fsdp", "gemini") or options.get("framework") == "deepspeed"
    kind = "exact" if not is_sliced or mesh.dp == 1 else "norms" if mesh.dp == 2 else "slice"
    # DeepSpeed gives some ranks nothing of a layer
    kinds = {kind, ""} if options.get("framework") == "deepspeed" and kind == "slice" else {kind}
    for row in table.to_dict("records"):
        of_replica = of_all if row["scope"] == "reduced" else of_shards[mesh.coordinates(row["rank"]).dp]
        _compare(row, of_replica[row["layer"]], tolerance)
        if row["scope"] == "local":
            _compare_with_mean(row, of_replica[row["layer"]], kinds, tolerance)
    seen = table[table["scope"] == "local"].groupby("layer")["rank"].count()
    assert (seen >= mesh.dp).all(), "each replica shows its local gradient of every layer"
    assert set(table[table["cosine_kind"] == kind]["layer"]) == {
        name for name, each in of_all.items() if each["norm"] > 1e-9
    }
    _compare_spread(combine_histograms(_columns(found, "histograms"), mesh), of_shards, of_all, mesh, tolerance)

    _compare_noise(noise_scale(_columns(found, "rows"), mesh, BATCH), of_shards, of_all, tolerance)
    norm_sq = sum(layer["norm"] ** 2 for layer in of_all.values())
    assert sum(rank["grad_sq"] for rank in found) == pytest.approx(norm_sq, rel=2 * tolerance)
    assert {layer for rank in found for layer in rank["second"]} == set(of_all), "watching works at any step"


def _compare_noise(table: pd.DataFrame, of_shards: list[dict], of_all: dict, tolerance: float) -> None:
    """McCandlish et al. 2018, appendix A.1, of norms of gradients in float64."""
    (row,) = table.to_dict("records")
    shards, batch = len(of_shards), float(BATCH)
    if shards == 1:
        assert row["kind"] == "one replica" and math.isnan(row["noise_scale"])
        return
    small = np.mean([sum(layer["norm"] ** 2 for layer in shard.values()) for shard in of_shards])
    big, own = sum(layer["norm"] ** 2 for layer in of_all.values()), batch / shards
    assert row["kind"] == "exact"
    rounding = 4 * tolerance * small * batch
    assert row["noise"] == pytest.approx((small - big) / (1 / own - 1 / batch), rel=4 * tolerance, abs=rounding)
    assert row["gradient_sq"] == pytest.approx(
        (batch * big - own * small) / (batch - own), rel=4 * tolerance, abs=rounding
    )


def _columns(found: list[dict], what: str) -> dict[str, np.ndarray]:
    rows = pd.DataFrame([row for rank in found for row in rank[what]])
    return {name: rows[name].to_numpy() for name in rows}


def _compare_with_mean(row: dict, expected: dict, kinds: set[str], tolerance: float) -> None:
    where = f"{row['layer']!r} on rank {row['rank']}"
    if expected["norm"] < 1e-9:
        return  # the gradient of attention's key bias is zero but for rounding, and has no direction
    assert row["cosine_kind"] in kinds, where
    if "slice" not in kinds:  # which is the cosine over the rank's own slice
        assert row["cosine"] == pytest.approx(expected["cosine"], abs=5 * tolerance), where
    assert row["norm_ratio"] == pytest.approx(expected["norm_ratio"], rel=2 * tolerance), where


def _compare_spread(table, of_shards: list[dict], of_all: dict, mesh, tolerance: float) -> None:
    """Every element is in a bucket; in fp32 in the one that it is in in float64, but for those on an edge."""
    for (scope, rank, layer), rows in table.groupby(["scope", "rank", "layer"]):
        expected = (of_all if scope == "reduced" else of_shards[mesh.coordinates(rank).dp])[layer]
        zeros = round(expected["zero_fraction"] * expected["numel"])
        if tolerance == FP32 and not layer.endswith(("c_attn", "attention.key")):
            assert rows["count"].sum() == expected["numel"] - zeros
            found = dict(zip(rows["exponent"], rows["count"], strict=True))
            spread = dict(zip(expected["exponents"], expected["counts"], strict=True))
            moved = sum(abs(found.get(e, 0) - spread.get(e, 0)) for e in {*found, *spread})
            assert moved <= 2 + 1e-3 * expected["numel"], (scope, rank, layer)
        else:
            assert 0 < rows["count"].sum() <= expected["numel"]


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

    @staticmethod
    def _records(*parts: GradientPart, precision: str = "fp32", sampled: bool = False) -> list:
        collector = GradientCollector(precision=precision, sampled=sampled)
        for part in parts:
            collector.take([part])
        found = collector.finish(7, 1, "local").records()
        assert collector.finish(8, 1, "local").records() == [], "finishing empties it"
        return found

    def test_only_finite_elements_are_summed(self):
        values = torch.tensor([1.0, -3.0, 0.0, math.nan, math.inf, -math.inf])
        record, spread = self._records(GradientPart("a", values, "", 1.0))
        assert (record.step, record.rank, record.layer, record.scope) == (7, 1, "a", "local")
        assert (record.numel, record.sum, record.max_abs) == (6, -2.0, 3.0)
        assert record.sum_sq == pytest.approx(10.0, rel=1e-6)
        assert (record.zero_count, record.nonfinite_count, record.underflow_count) == (1, 3, 0)
        assert (spread.first_exponent, spread.counts) == (0, [1, 1])
        assert (spread.zero_count, spread.nonfinite_count) == (1, 3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_half_precision_does_not_overflow(self, dtype):
        values = torch.full((4096,), 60000.0, dtype=dtype)
        record, spread = self._records(GradientPart("a", values, "tp", 1024.0))
        exact = values.double().numpy() / 1024
        assert record.sum == pytest.approx(exact.sum(), rel=1e-6)
        assert record.sum_sq == pytest.approx(np.sum(exact**2), rel=1e-5)
        assert record.max_abs == exact.max()
        assert (spread.first_exponent, spread.counts) == (5, [4096]), "58.6, the loss scale taken out"

    @pytest.mark.parametrize("size", [1e-30, 1e25])
    def test_squares_beyond_single_precision(self, size):
        values = torch.full((1000,), size)
        record, _ = self._records(GradientPart("a", values, ""))
        assert record.sum_sq == pytest.approx(1000 * float(values[0]) ** 2, rel=1e-6)
        assert statistics.norms([values]).item() ** 2 == pytest.approx(record.sum_sq)

    def test_the_spread_is_numpy_s(self):
        values = torch.from_numpy(np.random.default_rng(0).standard_cauchy(50_000).astype(np.float32))
        _, spread = self._records(GradientPart("a", values.view(100, 500).T, ""))
        exponents, counts = np.unique(np.frexp(values.double().numpy())[1] - 1, return_counts=True)
        found = {spread.first_exponent + i: count for i, count in enumerate(spread.counts) if count}
        assert found == dict(zip(exponents.tolist(), counts.tolist(), strict=True))

    def test_underflow_is_below_the_smallest_normal_number_with_the_loss_scale(self):
        values = torch.tensor([2.0**-15, 2.0**-14, 0.0, -(2.0**-20), 1.0], dtype=torch.float16)
        record, spread = self._records(GradientPart("a", values, "", 1024.0), precision="fp16")
        assert record.underflow_count == spread.underflow_count == 2
        tiny = torch.tensor([2.0**-127, 2.0**-126, 2.0**-140, 0.0, 1.0])
        record, spread = self._records(GradientPart("a", tiny, ""))
        assert (record.underflow_count, record.zero_count) == (2, 1)
        assert (spread.first_exponent, spread.counts[:2]) == (-127, [2, 1])

    def test_a_sample_gives_the_histogram_and_all_else_is_exact(self):
        values = torch.from_numpy(np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32))
        values[::3] = 0
        values[7, 7], values[100, 1] = math.inf, -100.0
        parts = [GradientPart("a", values, "", 2.0), GradientPart("b", torch.full((3,), 2.0**-130), "")]
        exact, sampled = (self._records(*parts, sampled=each) for each in (False, True))
        for one, other in zip(exact[:2], sampled[:2], strict=True):
            assert replace(one, underflow_count=0, dot=0.0) == replace(other, underflow_count=0, dot=0.0)
        assert not exact[2].sampled and sampled[2].sampled
        assert sum(sampled[2].counts) == sum(exact[2].counts) == values.numel() - exact[0].zero_count - 1
        share = {
            spread.first_exponent + index: count / sum(spread.counts)
            for spread in (exact[2],)
            for index, count in enumerate(spread.counts)
        }
        found = {sampled[2].first_exponent + i: n / sum(sampled[2].counts) for i, n in enumerate(sampled[2].counts)}
        drawn = statistics.SAMPLED * 2 / 3
        for exponent, expected in share.items():  # within five standard deviations of a share of so many draws
            assert found.get(exponent, 0) == pytest.approx(expected, abs=5 * math.sqrt(expected / drawn) + 1e-9)

    def test_samples_are_spread_over_all_columns_of_a_matrix(self):
        for width in (64, 128, 320, 352, 768, 1024):
            places = statistics.sample_places(width * 1000, torch.device("cpu"))
            counts = np.bincount(places.numpy() % width, minlength=width)
            expected = len(places) / width
            assert counts.max() <= expected + 6 * math.sqrt(expected) + 1, width
            assert len(np.unique(places)) == len(places) and places.max() < width * 1000
        assert statistics.sample_places(100, torch.device("cpu")).tolist() == list(range(100))

    def test_parts_of_a_layer_are_added_and_kinds_of_sharding_kept_apart(self):
        parts = [
            GradientPart("layer", torch.full((2,), value), sharded)
            for sharded, value in (("tp", 1.0), ("", 2.0), ("tp", -3.0))
        ]
        records = {record.sharded: record for record in self._records(*parts)[:2]}
        assert (records["tp"].numel, records["tp"].sum, records["tp"].max_abs) == (4, -4.0, 3.0)
        assert records[""].sum_sq == pytest.approx(8.0, rel=1e-6)

    def test_a_part_without_elements_says_nothing(self):
        assert self._records(GradientPart("layer", torch.empty(0), "dp")) == []

    def test_the_norm_of_millions_of_elements(self):
        values = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
        record, _ = self._records(GradientPart("a", values, ""))
        assert record.sum_sq == pytest.approx(np.sum(values.double().numpy() ** 2), rel=1e-6)

    def test_large_gradients_are_cut_up(self, monkeypatch):
        values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
        parts = [GradientPart("a", values[:7001], ""), GradientPart("b", values[7001:], "")]
        whole = self._records(*parts)
        monkeypatch.setattr("workbench.engine.watch.torch.gradient_statistics.CHUNK_ELEMENTS", 1000)
        for one, other in zip(self._records(*parts), whole, strict=True):
            assert one.underflow_count == other.underflow_count == 0
            assert getattr(one, "counts", 0) == getattr(other, "counts", 0)
            assert getattr(one, "sum_sq", 0) == pytest.approx(getattr(other, "sum_sq", 0), rel=1e-6)

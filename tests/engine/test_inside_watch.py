"""What is seen inside a model is that of one process in float64, under every plan; watching leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine import models
from tests.engine.frames import as_rows
from workbench.core.config import TrainSpec
from workbench.core.records import ActivationStats, AttentionStats, RouterStats, SpectralStats
from workbench.telemetry.inside.activations import combine, combine_attention, combine_routers, whole_batch
from workbench.telemetry.inside.spectra import combine_spectra

TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}
FSDP = {"framework": "torch", "plugin": "fsdp"}
ZERO2 = {"framework": "deepspeed", "plugin": "zero2"}
#: every weight is split; by default DeepSpeed leaves small ones whole
SPLIT = '{"zero_optimization": {"stage3_param_persistence_threshold": 0}}'
ZERO3 = {"framework": "deepspeed", "plugin": "zero3", "ds_config": SPLIT}
INSIDE = {"watch": "activations", "watch_every": 1, "steps": 1}
LEAVES = ("proj", "norm", "lm_head", "c_fc", "act_fn", ".act", "query", "dense")


def _watch(run, ranks: int, model: str, options: dict, **more):
    found = run(ranks, "tests.engine.watched_inside:train", model=model, options=options, **more)
    return found, TrainSpec.from_options({"ranks": ranks, **options}).plan.mesh


def _check(table, expected: dict[str, dict], *, tolerance: float = 2e-4) -> None:
    for row in table.to_dict("records"):
        known = expected[f"{row['layer']} {row['what']}"]
        place = f"{row['layer']} {row['what']}"
        if row["layer"] == "transformer.wpe":
            continue  # positions are embedded once for all samples of a micro-batch
        assert row["numel"] == known["numel"], place
        # where a gradient is zero in exact arithmetic (a first query has one key), rounding decides
        for name in ("norm", "max_abs", *(["zero_fraction"] if row["what"] == "output" else [])):
            assert row[name] == pytest.approx(known[name], rel=tolerance, abs=1e-9), (place, name)
        small = 1e-5 * known["norm"] / known["numel"] ** 0.5
        assert row["mean"] == pytest.approx(known["mean"], rel=1e-3, abs=small), place


@pytest.mark.parametrize(
    ("ranks", "model", "options"),
    [
        (1, "llama", {"plugin": "ddp"}),
        *[(2, "llama", plan) for plan in ({"plugin": "ddp"}, {"plugin": "zero2"}, TP, PP)],
        *[(2, "gpt2", plan) for plan in (TP, PP, ZERO2)],
        (2, "plain", ZERO3),
        (2, "vit", TP),
        (4, "llama", TP),
        (2, "normed", {"plugin": "ddp", "sync_batchnorm": True}),
        (2, "plain", {"plugin": "ddp", "accumulate": 2}),
        (2, "llama", {**PP, "accumulate": 2, "watch": "activations,micro_batches"}),
    ],
    ids=str,
)
def test_outputs_and_their_gradients_are_those_of_one_process(run_kept, run_alone, ranks, model, options):
    expected = run_alone("tests.engine.watched_inside:alone", model=model)
    found, mesh = _watch(run_kept, ranks, model, {**INSIDE, **options})
    table = whole_batch(as_rows(found, ActivationStats), mesh)
    _check(table, expected)
    seen = set(table["layer"] + " " + table["what"])
    leaves = {name for name in expected if name.split()[0].endswith(LEAVES)}
    assert leaves <= seen and len(seen) > len(expected) / 2, leaves - seen
    assert all(rank["hooks"] == 0 for rank in found), "nothing stays on the modules"


def test_a_gradient_is_of_the_loss_of_the_global_batch_and_rows_are_of_replicas(run_kept, run_alone):
    found, mesh = _watch(run_kept, 2, "llama", {**INSIDE, "plugin": "ddp"})
    table = combine(as_rows(found, ActivationStats), mesh)
    for replica in (0, 1):
        expected = run_alone("tests.engine.watched_inside:alone", model="llama", share=replica, of=2)
        _check(table.query("rank == @replica"), expected)


def test_micro_batches_have_rows_of_their_own(run_kept, run_alone):
    options = {**INSIDE, **PP, "watch": "activations,micro_batches"}
    found, mesh = _watch(run_kept, 2, "llama", options)
    table = combine(as_rows(found, ActivationStats), mesh)
    assert set(table["micro_batch"]) == {0, 1}
    for micro_batch in (0, 1):
        expected = run_alone("tests.engine.watched_inside:alone", model="llama", share=micro_batch, of=2)
        _check(table.query("micro_batch == @micro_batch"), expected)


@pytest.mark.parametrize("change", ["checkpointing", "checkpointing reentrant"])
def test_what_gradient_checkpointing_computes_again_counts_once(run_kept, run_alone, change):
    expected = run_alone("tests.engine.watched_inside:alone", model="llama")
    found, mesh = _watch(run_kept, 1, "llama", {**INSIDE, "plugin": "ddp"}, change=change)
    table = whole_batch(as_rows(found, ActivationStats), mesh)
    _check(table, expected)
    assert {f"model.layers.0.mlp.down_proj {what}" for what in ("output", "gradient")} <= set(
        table["layer"] + " " + table["what"]
    )


def test_the_loss_scale_is_removed_in_half_precision(run_kept, run_alone):
    expected = run_alone("tests.engine.watched_inside:alone", model="llama")
    for options in ({"plugin": "ddp"}, {"plugin": "zero2"}):
        found, mesh = _watch(run_kept, 2, "llama", {**INSIDE, **options, "precision": "fp16"})
        table = whole_batch(as_rows(found, ActivationStats), mesh)
        row = table.query("layer == 'model.layers.0.mlp.down_proj' and what == 'gradient'").iloc[0]
        assert row["norm"] == pytest.approx(expected["model.layers.0.mlp.down_proj gradient"]["norm"], rel=2e-2)


@pytest.mark.parametrize("model", ["llama", "gpt2", "llama-eager"])
@pytest.mark.parametrize(
    ("ranks", "options"), [(1, {"plugin": "ddp"}), (2, {"plugin": "ddp"}), (2, TP), (2, PP)], ids=str
)
def test_attention_is_that_of_the_formula(run_kept, run_alone, ranks, model, options):
    """16 tokens: every query is looked at."""
    expected = run_alone("tests.engine.watched_inside:attention_alone", model=model)
    found, mesh = _watch(run_kept, ranks, model, {**INSIDE, **options, "watch": "attention"})
    table = combine_attention(as_rows(found, AttentionStats), mesh)
    assert len(table) == len(expected) == 4
    for row in table.to_dict("records"):
        known = expected[row["layer"]]
        assert row["queries"] == known["queries"]
        assert row["entropy"] == pytest.approx(known["entropy"], rel=1e-4)
        assert row["entropy_share"] == pytest.approx(known["entropy_share"], rel=1e-4)
        assert row["max_logit"] == pytest.approx(known["max_logit"], rel=1e-3)
    assert all("ActivationStats" not in rank for rank in found), "nobody asked for them"


@pytest.mark.parametrize("options", [{"plugin": "ddp"}, TP, PP], ids=str)
def test_routers_of_mixtral_are_those_of_one_process(run_kept, run_alone, options):
    expected = run_alone("tests.engine.watched_inside:routers_alone", model="mixtral")
    found, mesh = _watch(run_kept, 2, "mixtral", {**INSIDE, **options, "watch": "routers"})
    table = combine_routers(as_rows(found, RouterStats), mesh).set_index("layer")
    assert set(table.index) == set(expected) and len(expected) == 2
    for layer, known in expected.items():
        row = table.loc[layer]
        assert row["tokens"] == known["tokens"] and row["entropy"] == pytest.approx(known["entropy"], rel=1e-5)
        np.testing.assert_allclose(row["load"], known["load"], atol=1e-9)
        assert row["max_load"] == pytest.approx(4 * max(known["load"]))


def test_watching_is_switched_on_and_off_while_it_trains(pool):
    script = {
        "2": [["watch", "activations"]], "3": [["watch_layers", "mlp$|q_proj"]], "5": [["watch", "off"]],
    }  # fmt: skip
    options = {"plugin": "ddp", "steps": 7, "watch_every": 1}
    found, mesh = _watch(pool.run, 2, "llama", options, script=script)
    table = whole_batch(as_rows(found, ActivationStats), mesh)
    assert set(table["step"]) == {4, 5, 6}, "a command holds after the step that follows it"
    assert set(table.query("step == 6")["layer"]) == {
        f"model.layers.{index}.{name}" for index in range(4) for name in ("mlp", "self_attn.q_proj")
    }
    assert len(set(table.query("step == 4")["layer"])) > 30
    nothing, _ = _watch(pool.run, 2, "llama", {"plugin": "ddp", "steps": 2})
    assert all("ActivationStats" not in rank and rank["hooks"] == 0 for rank in nothing), "off by default"


@pytest.mark.parametrize("options", [{"plugin": "ddp"}, TP], ids=str)
def test_the_governor_chooses_steps_and_all_ranks_look_at_the_same(pool, options):
    asked = {**options, "steps": 30, "watch": "activations,attention", "budget": 0.5}
    found, _ = _watch(pool.run, 2, "llama", asked)
    steps = [{row["step"] for row in rank["ActivationStats"]} for rank in found]
    assert steps[0] == steps[1] and 1 in steps[0] and 1 < len(steps[0]) < 30
    assert [{row["step"] for row in rank["AttentionStats"]} for rank in found] == steps


def test_it_is_said_why_a_tiny_model_is_looked_at_rarely(pool):
    options = {"plugin": "ddp", "steps": 21, "watch": "activations", "budget": 1e-6}
    (found,), _ = _watch(pool.run, 1, "plain", options)
    (text,) = [text for text in found["told"] if text.startswith("watched_rarely")]
    assert "measured in 1 of 20 steps" in text and "watch_every=10" in text
    (found,), _ = _watch(pool.run, 1, "plain", {**options, "watch_every": 15})
    assert not [text for text in found["told"] if text.startswith("watched_rarely")], "somebody chose it"


def test_a_compiled_model_is_refused_with_what_to_do(pool):
    with pytest.raises(Exception, match=r"is compiled .* leave out torch\.compile, or watch=off"):
        _watch(pool.run, 1, "plain", {**INSIDE, "plugin": "ddp"}, wrap="compile")
    script = {"1": [["watch", "activations"]]}
    found, _ = _watch(pool.run, 1, "plain", {"plugin": "ddp", "steps": 3}, script=script, wrap="compile")
    assert "is compiled" in found[0]["refused"][0]["reason"] and "ActivationStats" not in found[0]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("llama", {"plugin": "ddp"}),
        ("llama", {"plugin": "zero2"}),
        ("plain", {"plugin": "gemini", "precision": "bf16"}),
        ("llama", TP),
        ("llama", PP),
        ("gpt2", TP),
        ("llama", FSDP),
        ("llama", ZERO3),
        ("gpt2", {**FSDP, "tp": 2}),
        ("gpt2", {"framework": "torch", "plugin": "hybrid", "tp": 2}),
    ],
    ids=str,
)
def test_training_is_the_same_whatever_is_watched_and_singular_values_are_those_of_whole_weights(pool, model, options):
    losses = []
    for watch in ("", "activations,attention,weights"):
        asked = {**options, "steps": 4, "watch": watch, "watch_every": 1}
        found, _ = _watch(pool.run, 2, model, asked, iterations=80)
        losses.append([[row["loss"] for row in rank["StepRecord"]] for rank in found])
    np.testing.assert_array_equal(*losses)
    whole = _whole_matrices(found)
    shapes = {
        name.removesuffix(".weight"): tuple(value.shape) for name, value in models.model(model).named_parameters()
    }
    assert {layer: matrix.shape for layer, matrix in whole.items()} == {
        layer: shape for layer, shape in shapes.items() if len(shape) == 2 and (layer != "lm_head" or model != "gpt2")
    }
    table = combine_spectra(as_rows(found, SpectralStats)).query("step == 4").set_index("layer")
    assert set(table.index) == set(whole)
    for layer, matrix in whole.items():
        sigma = np.linalg.svd(matrix, compute_uv=False)
        row = table.loc[layer]
        assert row["sigma_max"] == pytest.approx(sigma[0], rel=3e-3) and row["sigma_max"] <= sigma[0] * (1 + 1e-6)
        assert row["norm"] == pytest.approx(np.sqrt(np.sum(sigma**2)), rel=1e-6)
        assert row["stable_rank"] == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2, rel=6e-3)


def _whole_matrices(found: list[dict]) -> dict[str, np.ndarray]:
    """Weights of all ranks in float64, parts of tensor-parallel ranks beside each other."""
    parts: dict[str, list[np.ndarray]] = {}
    axes: dict[str, int] = {}
    for rank in found:
        for layer, split, matrix in rank["matrices"]:
            axes[layer] = {"": -1, "rows": 0, "columns": 1}[split]
            parts.setdefault(layer, []).append(np.array(matrix, dtype=np.float64))
    assert all(len(values) == 1 for layer, values in parts.items() if axes[layer] < 0), "one rank reports each"
    return {
        layer: values[0] if axes[layer] < 0 else np.concatenate(values, axes[layer]) for layer, values in parts.items()
    }

"""A watched training logs what is true of weights, cosines, norms and loss scales, and all ranks watch the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.engine.frames import events_of
from workbench.core.config import TrainSpec
from workbench.telemetry.derive import global_metrics
from workbench.telemetry.gradients import combine, combine_weights
from workbench.telemetry.noise import noise_scale, similarity

TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}


def _watch(run, ranks: int, model: str, options: dict, *tables: str, **more):
    found = run(
        ranks, "tests.engine.watched_gradients:train", model=model, options=options, tables=[*tables, "events"], **more
    )
    return found, TrainSpec.from_options({"ranks": ranks, **options}).plan.mesh


def _columns(found: list[dict], table: str) -> dict[str, np.ndarray]:
    return {name: np.array(pd.Series([v for rank in found for v in rank[table][name]])) for name in found[0][table]}


@pytest.mark.parametrize(
    ("ranks", "model", "options"),
    [
        *[(2, "gpt2", plan) for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, {"plugin": "zero2"}, TP, PP)],
        (4, "llama", TP),
        (4, "gpt2", {**TP, "plugin": "zero1"}),
        (4, "plain", {"plugin": "zero1"}),
    ],
    ids=str,
)
def test_weights_updates_and_moments_are_those_of_the_formula(run_kept, run_alone, ranks, model, options):
    expected = run_alone("tests.engine.watched_gradients:adamw", model=model)
    found, mesh = _watch(run_kept, ranks, model, {**options, "steps": 1, "grad_every": 1}, "weights")
    table = combine_weights(_columns(found, "weights"), mesh).set_index("layer")
    assert set(table.index) == set(expected)
    for layer, norms in expected.items():
        # AdamW's first step is nearly the sign of the gradient: one of rounding noise (attention's key bias) has any
        tolerance = 0.2 if layer.endswith("c_attn") else 2e-3
        for name, value in norms.items():
            assert table.loc[layer, name] == pytest.approx(value, rel=tolerance if name == "update_norm" else 1e-4)
    assert table["update_ratio"].to_numpy() == pytest.approx(table["update_norm"] / table["weight_norm"])


def test_master_weights_are_watched_in_half_precision(run_kept, run_alone):
    for options in ({"plugin": "zero1", "precision": "bf16"}, {**TP, "precision": "bf16"}):
        expected = run_alone("tests.engine.watched_gradients:adamw", model="gpt2")
        found, mesh = _watch(run_kept, 2, "gpt2", {**options, "steps": 1, "grad_every": 1}, "weights")
        table = combine_weights(_columns(found, "weights"), mesh).set_index("layer")
        for layer, norms in expected.items():
            assert table.loc[layer, "weight_norm"] == pytest.approx(norms["weight_norm"], rel=4e-3)
            # updates of 3e-3 are below the spacing of bf16 weights near 1: only the masters show them
            if not layer.endswith("c_attn"):
                assert table.loc[layer, "update_norm"] == pytest.approx(norms["update_norm"], rel=5e-2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_zero2_says_that_its_cosines_are_of_a_slice(run_kept, run_alone, accumulate):
    expected = run_alone("tests.engine.watched_gradients:slices", model="plain", replicas=4)
    options = {"plugin": "zero2", "steps": 1, "grad_every": 1, "accumulate": accumulate}
    found, mesh = _watch(run_kept, 4, "plain", options, "gradients")
    local = combine(_columns(found, "gradients"), mesh).query("scope == 'local'")
    assert len(local) == 8 and set(local["cosine_kind"]) == {"slice"}
    for row in local.to_dict("records"):
        assert row["cosine"] == pytest.approx(expected[row["rank"]][row["layer"]], abs=1e-4)


@pytest.mark.parametrize("plugin", ["ddp", "zero1", "zero2"])
def test_similarity_of_four_replicas(run_kept, run_alone, plugin):
    expected = run_alone("tests.engine.watched_gradients:cosines", model="gpt2", replicas=4)
    options = {"plugin": plugin, "steps": 1, "grad_every": 1}
    found, mesh = _watch(run_kept, 4, "gpt2", options, "gradients", "sketches")
    similar = similarity(_columns(found, "gradients"), _columns(found, "sketches"), mesh)
    assert similar.attrs["kind"] == "sampled"
    assert similar.to_numpy() == pytest.approx(np.array(expected), abs=0.08), "64 elements of every parameter"


@pytest.mark.parametrize(
    ("ranks", "model", "options"),
    [
        (1, "gpt2", {"plugin": "ddp"}),
        *[(2, "gpt2", plan) for plan in ({"plugin": "ddp"}, {"plugin": "zero1"}, {"plugin": "zero2"}, TP, PP)],
        (4, "llama", TP),
        (2, "gpt2", {"plugin": "zero1", "precision": "fp16"}),
    ],
    ids=str,
)
def test_the_norm_of_every_layer_is_there_at_every_step(run_kept, ranks, model, options):
    """Those that come with the global norm are those of full sets, which are compared with one process elsewhere."""
    steps = {"steps": 8, "budget": 0.05}
    found, mesh = _watch(run_kept, ranks, model, {**options, **steps}, "gradient rows", "steps", "layer_norms")
    whole, _ = _watch(run_kept, ranks, model, {**options, **steps, "grad_every": 1}, "gradient rows")
    rows, expected = (
        combine(_columns(each, "gradient rows"), mesh).query("scope == 'reduced'").drop_duplicates(["step", "layer"])
        for each in (found, whole)
    )
    assert sum(len(rank["layer_norms"]["step"]) for rank in found), "some steps have norms alone"
    assert rows["step"].nunique() == 8 and (rows.groupby("step")["layer"].nunique() == rows["layer"].nunique()).all()
    both = rows.merge(expected, on=["step", "layer"], suffixes=("", "_expected"))
    assert len(both) == len(rows) == len(expected)
    assert both["norm"].to_numpy() == pytest.approx(both["norm_expected"].to_numpy(), rel=2e-4)
    metrics = global_metrics(_columns(found, "steps"), mesh)
    total = rows.assign(square=rows["norm"] ** 2).groupby("step")["square"].sum() ** 0.5
    assert total.to_numpy() == pytest.approx(metrics["grad_norm"], rel=1e-5), "they add up to the global norm"
    if mesh.dp == 1:
        local = combine(_columns(found, "gradient rows"), mesh).query("scope == 'local'")
        assert local["step"].nunique() == 8, "with one replica, the local gradient is the reduced one"


@pytest.mark.parametrize("options", [{"plugin": "ddp"}, {"plugin": "zero1"}, TP, {**PP, "accumulate": 2}], ids=str)
def test_the_governor_chooses_and_all_ranks_watch_the_same(pool, options):
    ranks = 4 if options.get("tp") else 2
    asked = {**options, "steps": 40, "budget": 0.2}
    found, mesh = _watch(pool.run, ranks, "llama" if ranks == 4 else "gpt2", asked, "gradient rows", "steps", "weights")
    watched = []
    for rank in found:
        rows = pd.DataFrame(rank["gradient rows"]).query("scope == 'local'")
        watched.append(set(zip(rows["step"], rows["layer"], strict=True)))
    for rank in range(ranks):
        peer = mesh.rank(**{**vars(mesh.coordinates(rank)), "dp": 0})
        assert watched[rank] == watched[peer]
    table = combine(_columns(found, "gradient rows"), mesh)
    per_step = table.query("scope == 'local'").groupby("step")["layer"].nunique()
    assert (per_step == table["layer"].nunique()).all(), "all layers at a time"
    assert (table.query("step > 1")["max_abs"].isna()).any(), "norms alone in between"
    assert table["norm"].notna().all() and table.query("step == 1")["max_abs"].notna().all()
    names = {name for _, name, _ in events_of(found[0], "monitor")}
    assert names == {"interval", "cost"}
    costs = [value for _, name, value in events_of(found[0], "monitor") if name == "cost"]
    assert all(0 < cost < 1 for cost in costs)
    spent = np.array(found[0]["steps"]["monitor_ms"])
    whole = np.array([step in set(found[0]["weights"]["step"]) for step in found[0]["steps"]["step"]])
    assert (spent[whole] > 0).all()


def test_a_given_interval_is_kept_and_layers_are_chosen_by_name(run_kept):
    options = {"plugin": "ddp", "steps": 7, "grad_every": 3, "grad_layers": r"mlp\.c_fc$|wte"}
    found, mesh = _watch(run_kept, 2, "gpt2", options, "gradient rows", "gradients", "histograms", "weights", "steps")
    table = combine(_columns(found, "gradients"), mesh)
    layers = {"transformer.wte", *(f"transformer.h.{i}.mlp.c_fc" for i in range(4))}
    assert set(table["step"]) == {1, 3, 6} and set(table["layer"]) == layers
    assert set(found[0]["histograms"]["layer"]) == layers
    assert {layer for rank in found for layer in rank["weights"]["layer"]} == layers
    assert noise_scale(_columns(found, "gradient rows"), mesh, 8)["step"].tolist() == [1, 3, 6]
    dense = combine(_columns(found, "gradient rows"), mesh).query("scope == 'reduced'")
    assert set(dense["step"]) == set(range(1, 8)) and set(dense["layer"]) == layers
    assert not any(found[0]["histograms"]["sampled"]), "who asks for an interval has exact histograms"
    for more in ({"grad_layers": "no such layer"}, {"grad_every": 0}):
        nothing, _ = _watch(run_kept, 2, "gpt2", {**options, **more}, "gradient rows")
        assert all(rank["gradient rows"]["step"] == [] for rank in nothing)


@pytest.mark.parametrize("options", [{"plugin": "ddp"}, {"plugin": "zero1"}, {"plugin": "zero2"}, TP], ids=str)
def test_a_frozen_layer_has_no_gradient(run_kept, options):
    """Nothing is done with it, so it has no rows; the others have theirs, and all have once it is updated again."""
    options = {**options, "steps": 4, "grad_every": 1}
    script = {"1": [["freeze", "wte"]], "2": [["unfreeze", "."]]}
    found, _ = _watch(run_kept, 2, "gpt2", options, "gradients", "weights", script=script)
    rows = pd.DataFrame(_columns(found, "gradients"))
    layers = {(scope, step): set(own["layer"]) for (scope, step), own in rows.groupby(["scope", "step"])}
    for (_, step), seen in layers.items():
        assert ("transformer.wte" in seen) == (step != 3) and len(seen) > 20, step
    weights = pd.DataFrame(_columns(found, "weights")).query("layer == 'transformer.wte'")
    moved = weights.groupby("step")["update_sq"].sum()
    assert moved[3] == 0 and (moved[[1, 2, 4]] > 0).all()


def test_light_takes_norms_alone(run_kept):
    options = {"plugin": "zero1", "steps": 4, "grad_every": 2, "level": "light"}
    found, mesh = _watch(run_kept, 2, "gpt2", options, "gradient rows", "histograms", "weights")
    full, _ = _watch(run_kept, 2, "gpt2", {**options, "level": "full"}, "gradient rows")
    light = combine(_columns(found, "gradient rows"), mesh)
    whole = combine(_columns(full, "gradient rows"), mesh)
    assert light["norm"].to_numpy() == pytest.approx(whole["norm"].to_numpy(), rel=1e-5)
    assert light["max_abs"].isna().all() and (light["nonfinite_count"] == 0).all()
    assert set(light.query("scope == 'local'")["cosine_kind"]) == {"norms"}
    assert all(rank["histograms"]["step"] == [] and rank["weights"]["step"] == [] for rank in found)


def test_our_norm_beside_the_frameworks(pool):
    clip = {"steps": 4, "clip": 0.5, "grad_every": 2}
    found, mesh = _watch(pool.run, 2, "gpt2", {**TP, **clip}, "steps")
    metrics = global_metrics(_columns(found, "steps"), mesh)
    ours, own = metrics["grad_norm"], metrics["framework_norm"]
    assert np.isnan(own[2]), "it is asked on watched steps alone"
    assert own[[0, 1, 3]] == pytest.approx(ours[[0, 1, 3]], rel=0.05)
    assert (np.abs(own[[0, 1, 3]] / ours[[0, 1, 3]] - 1) > 1e-4).all(), "fused layers count half in it"
    assert metrics["grad_norm_clipped"] == pytest.approx(np.minimum(ours, 0.5))
    for options in ({**TP, "precision": "bf16"}, {"plugin": "zero1"}, {"plugin": "zero2"}):
        found, mesh = _watch(pool.run, 2, "llama", {**options, **clip}, "steps")
        metrics = global_metrics(_columns(found, "steps"), mesh)
        assert metrics["framework_norm"][[0, 1, 3]] == pytest.approx(metrics["grad_norm"][[0, 1, 3]], rel=1e-4)
    found, mesh = _watch(pool.run, 2, "plain", {"plugin": "ddp", **clip}, "steps")
    assert np.isnan(global_metrics(_columns(found, "steps"), mesh)["framework_norm"]).all(), "DDP computes none"


@pytest.mark.parametrize("options", [{"plugin": "ddp"}, {"plugin": "zero1"}, TP, PP], ids=str)
def test_a_change_of_the_loss_scale_is_an_event(pool, options):
    # one overflow is not enough for Colossal-AI, whose scaler waits for a second
    asked = {**options, "precision": "fp16", "steps": 8, "grad_every": 1, "clip": 1.0}
    found, mesh = _watch(pool.run, 2, "gpt2", asked, "steps", "gradients", initial_scale=2.0**24)
    for rank in found:
        scales = rank["steps"]["loss_scale"]
        changes = [(step, scales[step - 1]) for step in range(2, 9) if scales[step - 1] != scales[step - 2]]
        assert changes and scales[-1] < scales[0] == 2.0**24
        assert [(step, value) for step, _, value in events_of(rank, "loss_scale")] == changes
    table = combine(_columns(found, "gradients"), mesh)
    assert table.query("step == 1")["nonfinite_count"].sum() > 0, "what overflowed is seen"
    metrics = global_metrics(_columns(found, "steps"), mesh)
    assert metrics["skipped"][0] and np.isfinite(metrics["grad_norm"][~metrics["skipped"]]).all()

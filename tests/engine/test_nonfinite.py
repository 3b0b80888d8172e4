"""Faults planted in one module on one rank: found by name, decided alike, and the step kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.engine.faulty import PLACES, TRIGGER_INPUT
from workbench.core.columns import Columns
from workbench.core.config import TrainSpec
from workbench.telemetry.derive import global_metrics
from workbench.telemetry.store import Store

STEPS, AT = 4, 3
DDP, ZERO1, ZERO2 = ({"plugin": plugin} for plugin in ("ddp", "zero1", "zero2"))
TORCH = {"framework": "torch", "plugin": "ddp"}
FSDP = {"framework": "torch", "plugin": "fsdp"}
CONTEXT = {"framework": "torch", "plugin": "context", "cp": 2}
TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}
STAGES = {**PP, "framework": "torch"}
#: (ranks, model, plan, rank with the fault, its place)
CASES = [
    (2, "plain", DDP, 1, "plain"),
    (2, "plain", {**DDP, "accumulate": 2}, 1, "plain"),
    (2, "plain", {**TORCH, "accumulate": 2}, 1, "plain"),
    (2, "plain", {**FSDP, "accumulate": 2}, 1, "plain"),
    (2, "llama", FSDP, 1, "llama"),
    (2, "plain", {"framework": "deepspeed", "plugin": "zero2", "accumulate": 2}, 1, "plain"),
    (2, "plain", {"framework": "mpi", "plugin": "ddp", "accumulate": 2}, 1, "plain"),
    (2, "plain", {"framework": "deepspeed", "plugin": "zero3", "accumulate": 2}, 1, "plain"),
    (4, "llama", {**FSDP, "tp": 2}, 3, "llama"),
    (4, "llama", CONTEXT, 3, "llama"),
    (2, "llama", ZERO1, 1, "llama"),
    (2, "plain", ZERO2, 0, "plain"),
    (2, "llama", {**ZERO1, "precision": "bf16"}, 0, "llama"),
    (2, "plain", {"plugin": "gemini", "precision": "bf16", "accumulate": 2}, 1, "plain"),
    (2, "llama", TP, 1, "llama"),
    (2, "llama", PP, 0, "llama"),
    (2, "llama", PP, 1, "late"),
    (2, "llama", {**STAGES, "schedule": "interleaved"}, 1, "late"),
    (4, "llama", TP, 3, "llama"),
    (4, "llama", {**PP, **ZERO1}, 3, "late"),
    (4, "gpt2", {**ZERO1, "tp": 2}, 2, "gpt2"),
    *[
        (2, "gpt2", plan, 0, "gpt2") for plan in (DDP, TP, PP, STAGES)
    ],  # with dropout, which must fall the same way again
]


def _name(case: Any) -> str:
    ranks, model, plan, rank, place = case
    return "-".join([str(ranks), model, *map(str, plan.values()), f"rank{rank}", place])


def read(run: Path) -> tuple[Columns, Columns, list[dict[str, Any]]]:
    store = Store(run)
    store.refresh()
    events = store.table("events")
    chosen = np.flatnonzero(events["kind"] == "nonfinite")
    found = [
        {"name": events["name"][i], "by": int(events["rank"][i]), **json.loads(events["value"][i])} for i in chosen
    ]
    return store.table("steps"), events, found


def poisoned_sample(ranks: int, plan: dict[str, Any], rank: int) -> int:
    """The second sample of the rank's share of the batch of step ``AT``."""
    mesh = TrainSpec.from_options({"ranks": ranks, **plan}).plan.mesh
    return (AT - 1) * 8 + mesh.coordinates(rank).dp * (8 // mesh.dp) + 1


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=_name)
def test_a_planted_fault_is_found_and_the_run_stops_before_the_update(
    run_kept: Any, tmp_path: Path, case: Any, where: str
) -> None:
    ranks, model, plan, rank, place = case
    sample = poisoned_sample(ranks, plan, rank)
    ended = run_kept(
        ranks, "tests.engine.faulty:train", run=str(tmp_path), model=model, where=where, poisoned=sample,
        options={"steps": STEPS, **plan}, faulty_rank=rank, place=PLACES[place],
    )  # fmt: skip
    assert [one["outcome"] for one in ended] == ["stopped"] * ranks
    assert all(one["finite"] and one["cleared"] for one in ended), "no weight took part in the bad step"
    steps, _, found = read(tmp_path)
    assert steps["step"].tolist().count(AT) == ranks and steps["step"].max() == AT
    assert steps["skipped"].tolist() == (steps["step"] == AT).tolist()

    (fault,) = found
    assert (fault["by"], fault["rank"], fault["step"], fault["where"]) == (rank, rank, AT, where)
    # nothing is planted inside: "inner" is the innocent module within the fault
    assert (fault["layer"], fault["module"]) == (PLACES[place], "Fault")
    assert fault["name"] == ("loss" if where == "forward" else "gradient")
    assert fault["loss_again"] == fault["loss"], "the pass was repeated bit by bit"
    (given,) = fault["inputs"]
    assert given["nonfinite_count"] == 0 and given["min"] <= given["mean"] <= given["max"]
    assert sum(one["nonfinite_count"] for one in fault["output"]) > 0
    assert fault["batch_nonfinite"] == 0

    mesh = TrainSpec.from_options({"ranks": ranks, **plan}).plan.mesh
    replica = [one for one in range(ranks) if mesh.coordinates(one).dp == mesh.coordinates(rank).dp]
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("rank-*/nonfinite-*"))
    assert kept == [f"rank-{one:05d}/nonfinite-step-{AT:06d}" for one in replica]
    assert fault["kept"] == kept[replica.index(rank)]
    for directory in kept:
        assert {file.name for file in (tmp_path / directory).iterdir()} == {
            "batch.json", "batch.safetensors", "random.json", "random.safetensors", "weights.safetensors", "fault.json",
        }  # fmt: skip


@pytest.mark.parametrize("plan", [DDP, ZERO1, ZERO2, TP, PP, STAGES], ids=str)
def test_a_skipped_step_is_skipped_on_all_ranks_and_training_goes_on(
    run_kept: Any, run_alone: Any, tmp_path: Path, plan: dict[str, Any]
) -> None:
    model = "llama" if plan in (TP, PP, STAGES) else "plain"
    sample = poisoned_sample(2, plan, 1)
    options = {"steps": 6, "on_nonfinite": "skip", **plan}
    place = PLACES["late" if plan in (PP, STAGES) else model]  # on the stage of rank 1
    arguments = {"model": model, "where": "forward", "options": options, "faulty_rank": 1, "place": place}
    ended = run_kept(2, "tests.engine.faulty:train", run=str(tmp_path), poisoned=sample, **arguments)
    assert [(one["outcome"], one["finite"]) for one in ended] == [("finished", True)] * 2
    steps, _, found = read(tmp_path)
    assert len(found) == 1 and found[0]["action"] == "skip"
    assert set(steps["step"][steps["skipped"]]) == {AT} and steps["skipped"].sum() == 2
    if model == "plain":
        alone = run_alone("tests.engine.faulty:plain", steps=6, without=AT)["losses"]
        mean = np.array([steps["loss"][steps["step"] == step].mean() for step in range(1, 7)])
        others = np.arange(1, 7) != AT
        np.testing.assert_allclose(mean[others], np.array(alone)[others], atol=1e-5)


@pytest.mark.parametrize("plan", [DDP, ZERO2], ids=str)
def test_go_tells_once_and_goes_on(run_kept: Any, tmp_path: Path, plan: dict[str, Any]) -> None:
    options = {"steps": 6, "on_nonfinite": "go", **plan}
    arguments = {"model": "plain", "where": "forward", "options": options, "faulty_rank": 1}
    ended = run_kept(2, "tests.engine.faulty:train", run=str(tmp_path), poisoned=17 + 4, **arguments)
    assert [(one["outcome"], one["finite"]) for one in ended] == [("finished", False)] * 2
    steps, _, found = read(tmp_path)
    assert [(fault["step"], fault["layer"]) for fault in found] == [(AT, "1")]
    assert not steps["skipped"].any() and steps["step"].max() == 6


def test_what_is_kept_is_the_batch_and_the_weights_before_the_step(
    run_kept: Any, run_alone: Any, tmp_path: Path
) -> None:
    sample = poisoned_sample(2, DDP, 1)
    arguments = {"model": "plain", "where": "backward", "options": {"steps": STEPS, **DDP}, "faulty_rank": 1}
    run_kept(2, "tests.engine.faulty:train", run=str(tmp_path), poisoned=sample, **arguments)
    directory = tmp_path / f"rank-00001/nonfinite-step-{AT:06d}"
    weights = load_file(directory / "weights.safetensors")
    expected = run_alone("tests.engine.faulty:plain", steps=STEPS, without=AT)["weights"]
    assert set(weights) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(weights[name], values, atol=1e-6)
    inputs = load_file(directory / "batch.safetensors")["tensor-0"]
    assert inputs.shape == (4, 17) and inputs[1, 0] == TRIGGER_INPUT
    about = json.loads((directory / "fault.json").read_text())
    assert (about["step"], about["culprit"], about["finding"]["layer"]) == (AT, 1, "1")
    assert math.isfinite(float.fromhex(about["loss"])), "the forward pass was sound"


def test_an_fp16_overflow_is_routine_until_it_persists(pool: Any, tmp_path: Path) -> None:
    """The scaler drops such steps by itself; the fault is everywhere here, so it comes at every step."""
    options = {"steps": 12, "precision": "fp16", **ZERO1}
    arguments = {"model": "plain", "where": "backward", "options": options}
    ended = pool.run(2, "tests.engine.faulty:train", run=str(tmp_path), **arguments)
    assert [one["outcome"] for one in ended] == ["stopped"] * 2
    steps, _, found = read(tmp_path)
    assert steps["step"].max() == 8 and steps["skipped"].all()
    assert {fault["step"] for fault in found} == {8}


@pytest.mark.parametrize(
    ("ranks", "model", "plan"), [(2, "plain", ZERO1), (2, "gpt2", {**PP, "accumulate": 2}), (4, "gpt2", TP)], ids=str
)
def test_a_spike_of_the_global_loss_or_norm_is_an_event_of_rank_0(
    run_kept: Any, tmp_path: Path, ranks: int, model: str, plan: dict[str, Any]
) -> None:
    at, steps = 13, 14
    arguments = {"model": model, "where": "criterion", "options": {"steps": steps, **plan}, "poisoned": (at - 1) * 8}
    run_kept(ranks, "tests.engine.faulty:train", run=str(tmp_path), **arguments)
    store = Store(tmp_path)
    store.refresh()
    events = pd.DataFrame(store.table("events")).query("kind == 'spike'")
    assert set(events["rank"]) == {0}
    assert events.loc[events["step"] == at, "name"].tolist() == ["loss", "grad_norm"]
    mesh = TrainSpec.from_options({"ranks": ranks, **plan}).plan.mesh
    metrics = pd.DataFrame(global_metrics(store.table("steps"), mesh)).set_index("step")
    for event in events.to_dict("records"):
        value = json.loads(event["value"])
        before = metrics.loc[: event["step"] - 1, event["name"]]
        assert value["value"] == pytest.approx(metrics.loc[event["step"], event["name"]], rel=1e-6)
        assert value["usual"] == pytest.approx(before.median(), rel=1e-6)
        assert value["score"] > 8

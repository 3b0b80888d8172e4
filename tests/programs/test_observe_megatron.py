"""Loops around Megatron's DDP, observed on two ranks.

They run in the environment that `workbench env create megatron` makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.environments import interpreter
from tests.programs.test_observe_odd import TORCHRUN, run_script, warnings
from workbench import Run

SCRIPT = Path(__file__).with_name("observed_megatron.py")
#: case -> how far its figures may be from those in float64
TOLERANCES = {
    **dict.fromkeys(("plain", "overlapped", "distributed", "tokens", "split"), 1e-4),
    "bf16": 2e-2,
    "fp16": 2e-3,
}
UNSEEN = {
    "plain": "",
    "overlapped": "",
    "distributed": "weights are not seen",
    "bf16": "weights are not seen",
    "fp16": "weights are not seen",
    "tokens": "local ones are not seen",
    "split": "the global norm alone is seen",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("megatron")
    run_script(out, *TORCHRUN, str(SCRIPT), python=interpreter("megatron"))
    return dict(json.loads((out / "found.json").read_text()))


@pytest.mark.parametrize("case", TOLERANCES)
def test_loss_rate_and_norm_are_those_of_one_process(found: dict[str, dict[str, Any]], case: str) -> None:
    """Also with clipping, after the rate was set (the losses that follow are of that rate), and in half precision."""
    run, expected = Run(Path(found[case]["path"])), found[case]["expected"]
    assert run.status == "stopped" and run.plan.ranks == 2 and run.plan.plugin == "megatron"
    metrics = run.metrics()
    assert list(metrics["lr"]) == pytest.approx([each["lr"] for each in expected])
    assert list(metrics["loss"]) == pytest.approx([each["loss"] for each in expected], rel=TOLERANCES[case])
    assert list(metrics["grad_norm"]) == pytest.approx([each["grad_norm"] for each in expected], rel=TOLERANCES[case])
    assert not metrics["skipped"].any()
    assert {"forward", "backward", "communication", "optimizer"} <= set(run.phases()["phase"])


@pytest.mark.parametrize("case", TOLERANCES)
def test_what_is_not_seen_is_named(found: dict[str, dict[str, Any]], case: str) -> None:
    told = warnings(Run(Path(found[case]["path"])))
    assert UNSEEN[case] in told.pop("not_seen", "")
    assert not told


@pytest.mark.parametrize("case", [case for case in TOLERANCES if case != "split"])
def test_gradients_of_layers_are_read_from_the_buffers(found: dict[str, dict[str, Any]], case: str) -> None:
    """Before reduction, of each rank, and reduced: by buckets while backward runs, or after it, and where each rank has
    a part of what is reduced."""
    expected, rows = found[case]["expected"], Run(Path(found[case]["path"])).gradients()
    reduced, local = rows[rows["scope"] == "reduced"], rows[rows["scope"] == "local"]
    layers = {"inner.0", "inner.2"}
    assert set(reduced["layer"]) == layers and len(reduced) >= len(layers) * len(expected)
    assert set(reduced["shards"]) == {2 if case == "distributed" else 1}
    assert set(local["layer"]) == (set() if case == "tokens" else layers)
    for row in reduced.itertuples():
        of_all = expected[row.step - 1]["reduced"]
        assert row.norm == pytest.approx(of_all[row.layer.removeprefix("inner.")], rel=TOLERANCES[case]), row
    for row in local.itertuples():
        of_rank = expected[row.step - 1]["local"][row.rank]
        assert row.norm == pytest.approx(of_rank[row.layer.removeprefix("inner.")], rel=TOLERANCES[case]), row


def test_weights_are_seen_where_the_optimizer_has_them(found: dict[str, dict[str, Any]]) -> None:
    for case in ("plain", "overlapped"):
        assert set(Run(Path(found[case]["path"])).weights()["layer"]) == {"inner.0", "inner.2"}

"""Loops around DeepSpeed's engines, observed on two ranks.

They run in the environment that `workbench env create deepspeed` makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.environments import interpreter
from tests.programs.test_observe_odd import TORCHRUN, run_script, warnings
from workbench import Run

SCRIPT = Path(__file__).with_name("observed_deepspeed.py")
#: case -> how far its figures may be from those in float64
TOLERANCES = {
    **{f"zero-{stage}": 1e-4 for stage in range(4)},
    "fp16": 2e-3,
    "fp16-zero-2": 2e-3,
    "bf16": 5e-3,
    "bf16-zero-1": 5e-3,
    "pipeline": 1e-4,
    "pipeline-bf16": 5e-3,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("deepspeed")
    run_script(out, *TORCHRUN, str(SCRIPT), python=interpreter("deepspeed"))
    return dict(json.loads((out / "found.json").read_text()))


@pytest.mark.parametrize("case", TOLERANCES)
def test_loss_rate_and_norm_are_those_of_one_process(found: dict[str, dict[str, Any]], case: str) -> None:
    """Also with clipping, after the rate was set (the losses that follow are of that rate), and in half precision,
    where steps are left out until the loss scale fits."""
    run, expected = Run(Path(found[case]["path"])), found[case]["expected"]
    assert run.status == "stopped" and run.plan.ranks == 2 and run.plan.plugin == "deepspeed"
    metrics = run.metrics()
    skipped = [each["skipped"] for each in expected]
    assert list(metrics["skipped"]) == skipped and any(skipped) == (case == "fp16-zero-2")
    assert list(metrics["lr"]) == pytest.approx([each["lr"] for each in expected])
    assert list(metrics["loss"]) == pytest.approx([each["loss"] for each in expected], rel=TOLERANCES[case])
    taken = [turn for turn, is_skipped in enumerate(skipped) if not is_skipped]
    norms = [expected[turn]["grad_norm"] for turn in taken]
    assert list(metrics["grad_norm"].iloc[taken]) == pytest.approx(norms, rel=TOLERANCES[case])
    assert {"forward", "backward", "optimizer"} <= set(run.phases()["phase"])


def test_what_is_not_seen_is_named(found: dict[str, dict[str, Any]]) -> None:
    told = {case: warnings(Run(Path(each["path"]))) for case, each in found.items()}
    for case, each in told.items():
        seen = "local gradients are not seen" if case in ("zero-0", "pipeline") else "the global norm alone is seen"
        assert seen in each["not_seen"], case
        assert set(each) == {"not_seen"} | ({"loss_scale_lost"} if case == "fp16" else set()), case
    assert "divides the gradients by its loss scale (128)" in told["fp16"]["loss_scale_lost"]


@pytest.mark.parametrize("case", ["zero-0", "pipeline"])
def test_in_float32_without_zero_layers_are_seen(found: dict[str, dict[str, Any]], case: str) -> None:
    expected = found[case]["expected"]
    rows = Run(Path(found[case]["path"])).gradients().query("scope == 'reduced'")
    assert len(rows) >= 2 * len(expected) and set(rows["layer"]) == {"0", "2"}
    for row in rows.itertuples():
        assert row.norm == pytest.approx(expected[row.step - 1]["reduced"][row.layer], rel=1e-4), row


def test_stages_of_a_pipeline_are_the_plan(found: dict[str, dict[str, Any]]) -> None:
    run = Run(Path(found["pipeline"]["path"]))
    assert run.plan.pp == 2 and run.plan.micro_batches == 2
    (batch,) = [event.value for event in run.events().itertuples() if event.name == "batch"]
    assert batch["samples"] == 12

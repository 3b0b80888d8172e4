"""Loops around DeepSpeed's engine, observed on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs
from tests.programs.test_observe_odd import TORCHRUN, run_script, warnings
from workbench import Run

needs("deepspeed", "python -m uv sync --extra deepspeed", in_ci=False)
SCRIPT = Path(__file__).with_name("observed_deepspeed.py")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("deepspeed")
    run_script(out, *TORCHRUN, str(SCRIPT))
    found: list[dict[str, Any]] = json.loads((out / "found.json").read_text())
    return found


@pytest.mark.parametrize("stage", range(4))
def test_loss_rate_and_norm_are_those_of_one_process(stages: list[dict[str, Any]], stage: int) -> None:
    """Also with clipping (stages 1 and 3), and after the rate was set: the losses that follow are of that rate."""
    run, expected = Run(Path(stages[stage]["path"])), stages[stage]["expected"]
    assert run.status == "stopped" and run.plan.ranks == 2 and run.plan.plugin == "deepspeed"
    metrics = run.metrics()
    for name in ("loss", "lr", "grad_norm"):
        assert list(metrics[name]) == pytest.approx([each[name] for each in expected], rel=1e-4), name
    assert not metrics["skipped"].any()
    assert {"forward", "backward", "optimizer"} <= set(run.phases()["phase"])


def test_what_is_not_seen_is_named(stages: list[dict[str, Any]]) -> None:
    told = [warnings(Run(Path(each["path"]))) for each in stages]
    assert all(set(each) == {"not_seen"} for each in told)
    assert "local gradients are not seen" in told[0]["not_seen"]
    assert all("of gradients the global norm alone is seen" in each["not_seen"] for each in told[1:])


def test_without_zero_layers_are_seen(stages: list[dict[str, Any]]) -> None:
    rows = Run(Path(stages[0]["path"])).gradients().query("scope == 'reduced'")
    assert len(rows) >= 2 * len(stages[0]["expected"])
    for row in rows.itertuples():
        assert row.norm == pytest.approx(stages[0]["expected"][row.step - 1]["reduced"][row.layer], rel=1e-4), row

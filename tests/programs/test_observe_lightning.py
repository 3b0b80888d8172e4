"""Lightning's trainer, observed by the callback on one and two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.optional import needs
from tests.programs.test_observe_odd import TORCHRUN, TRAINERS, run_script
from workbench import Run

needs("lightning", "python -m uv sync")


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_and_norms_are_those_of_the_module(tmp_path: Path, ranks: int) -> None:
    """With accumulated gradients, and clipping: the norm is that before it."""
    run_script(tmp_path, *(TORCHRUN if ranks > 1 else ()), str(TRAINERS), "lightning")
    run = Run(Path((tmp_path / "run-0").read_text()))
    expected = json.loads((tmp_path / "expected.json").read_text())
    metrics = run.metrics()
    assert run.status == "finished" and run.plan.ranks == ranks, run.events().to_string()
    assert list(metrics["loss"]) == pytest.approx([each["loss"] for each in expected], rel=1e-4)
    assert list(metrics["grad_norm"]) == pytest.approx([each["grad_norm"] for each in expected], rel=1e-3)

"""Whole trainings with local steps: as plain loops, whatever is saved and evaluated meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.test_steering import TRAIN, column

TORCH = {"framework": "torch", "plugin": "ddp"}
COLOSSAL = {"framework": "colossal", "plugin": "ddp"}
STEPS = 20


@pytest.mark.parametrize("plan", [TORCH, COLOSSAL], ids=["torch", "colossal"])
@pytest.mark.parametrize(("ranks", "clip"), [(2, 1.4), (4, 1.9)])
def test_losses_are_those_of_plain_loops_that_are_averaged(run_kept, plan, ranks, clip):
    """With each rank's own gradient clipped, and accumulated."""
    from tests.engine import stepping

    options = {**plan, "algorithm": "local-sgd:3", "clip": clip, "accumulate": 2}
    found = run_kept(ranks, TRAIN, model="plain", options=options, steps=STEPS)
    right = stepping.by_hand(ranks, steps=STEPS, every=3, clip=clip, accumulate=2)
    for rank in range(ranks):
        assert column(found, "loss", rank) == pytest.approx(right["losses"][rank], abs=1e-5)
    squares = np.sum([column(found, "grad_sq", rank) for rank in range(ranks)], axis=0)
    assert squares == pytest.approx(right["squares"], rel=1e-3)
    assert max(right["squares"]) > clip**2 > min(right["squares"])


@pytest.mark.parametrize("plan", [TORCH, COLOSSAL], ids=["torch", "colossal"])
def test_checkpoints_and_evaluations_between_exchanges_disturb_nothing(run_kept, plan):
    """They use the means of the weights: after steps 3 and 6 ranks hold those, after the others not."""
    options = {**plan, "algorithm": "local-sgd:3"}
    plain = run_kept(2, TRAIN, model="noisy", options=options, steps=8)
    watched = {**options, "save_every": 1, "eval_every": 1, "keep": 0}
    found = run_kept(2, "tests.engine.stepping:saved", model="noisy", options=watched, steps=8)
    for rank in range(2):
        assert column(found, "loss", rank) == column(plain, "loss", rank)
    assert [step for step, (_, among) in found[0]["apart"].items() if not among] == ["3", "6"]
    assert max(off for off, _ in found[0]["apart"].values()) < 1e-7


def test_another_plan_goes_on_from_the_means(run_kept):
    """After step 4, when ranks hold the same: whoever goes on has the loss of the next step."""
    first, second = {**TORCH, "algorithm": "local-sgd:4"}, {**COLOSSAL, "algorithm": "diloco:2"}
    found = run_kept(2, "tests.engine.steered:resumed", model="plain", options=first, second=second, steps=8)
    for rank in found:
        assert rank["again"]["rows"][0][:2] == pytest.approx(rank["first"]["rows"][4][:2], abs=1e-6)
    text = [e["value"] for rank in found for e in rank["again"]["events"] if e["name"] == "plan_changed"]
    assert text[0].startswith("random generators and the state of local-sgd:4 were not restored")


def test_a_step_that_is_skipped_counts(run_kept):
    """A gradient that is not a number on one rank: all skip the update, and exchange weights as before."""
    options = {**TORCH, "algorithm": "local-sgd:2", "on_nonfinite": "skip", "lr": 1e30}
    found = run_kept(2, TRAIN, model="plain", options=options, steps=6, guarded=True)
    assert all(column(found, "step", rank) == [*range(1, 7)] for rank in range(2))

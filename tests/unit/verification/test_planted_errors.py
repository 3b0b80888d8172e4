"""Errors of parallelism, planted into recorded trainings: the parameter, the step and the cause are named."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.unit.verification import simulated
from tests.unit.verification.simulated import FAULTY, FIRST, NORM, SECOND, STEPS, train
from workbench.errors import RunDirectoryError
from workbench.verification.compare import loss_tolerance, relative, roundoff_of, tolerance
from workbench.verification.judge import Plan, judge
from workbench.verification.result import Verification

ABOUT = {"samples": {step: [f"{step}-{n} 6" for n in range(8)] for step in range(1, STEPS + 1)}}


def verified(**plan: object) -> Verification:
    """``plan``: of ``simulated.train``, and ``clip``."""
    clip = float(plan.pop("clip", 0.0))  # type: ignore[arg-type]
    about = Plan(name="the plan", reference="one process", accumulate=int(plan.get("accumulate", 1)), clip=clip)  # type: ignore[call-overload]
    return judge(train(**plan), train(about=ABOUT), train(noise=5e-7), about)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", [{"dp": 2}, {"tp": 2}, {"dp": 2, "tp": 2}, {"dp": 2, "accumulate": 2}])
def test_right_plans_train_the_same(plan: dict[str, int]) -> None:
    found = verified(**plan)
    assert found.same and found.first is None and not found.causes, str(found)
    assert found.sentence.startswith(
        "the plan trains the same as one process: over 4 steps the loss differs by at most"
    )
    assert np.shape(found.gradients) == (3, STEPS) and found.layers == ["norm", "first", "second"]


CASES = [
    ("not reduced over tp", {"tp": 2}, [NORM], f"the gradient of {NORM} is not reduced over tp: the sum of the ranks'"),
    ("not averaged over dp", {"dp": 2}, None, "is not averaged over dp: each rank keeps that of its own share"),
    (
        "averaged twice",
        {"dp": 2},
        None,
        "each gradient is 0.5 times the reference: averaged twice over dp (2 replicas)",
    ),
    ("summed", {"dp": 2}, None, "each gradient is 2 times the reference: summed over dp (2 replicas)"),
    ("accumulation", {"accumulate": 2}, None, "each gradient is 2 times the reference: not divided by the 2 gradient"),
    ("mixed up", {"dp": 2}, [FIRST], f"the gradient of {FIRST} has the right elements in another order"),
    ("no gradient", {"tp": 2}, [SECOND], f"the gradient of {SECOND} is 0 under the plan: none arrives there"),
    ("part", {"tp": 2}, [FIRST], f"only the part of rank 1 is wrong in the gradient of {FIRST}"),
    ("backward", {"dp": 2}, [NORM, FIRST], f"the first in the order of the backward pass is {FIRST}"),
]


@pytest.mark.parametrize(("fault", "plan", "names", "cause"), CASES, ids=[case[0] for case in CASES])
def test_a_wrong_gradient_is_named(fault: str, plan: dict[str, int], names: list[str] | None, cause: str) -> None:
    found = verified(fault=fault, **plan)
    assert found.verdict == "differs" and found.first_step == FAULTY, str(found)
    assert {each.name for each in found.ranked("gradient")} == set(names or simulated.SHAPES)
    assert not found.ranked("loss"), "of this step it is right"
    assert any(cause in text for text in found.causes), found.causes
    differences = [each.difference for each in found.ranked("gradient")]
    assert differences == sorted(differences, reverse=True)
    assert f"at step {FAULTY} relative difference of the gradient of" in found.sentence


def test_a_stale_shard_is_named() -> None:
    found = verified(fault="stale shard", tp=2)
    assert found.first_step == FAULTY and [each.name for each in found.ranked("weight")] == [SECOND]
    assert found.causes == [
        f"the part of rank 1 of {SECOND} did not change in step 2 although its gradient is right: a stale shard"
    ]


def test_a_rank_that_computes_with_old_weights_is_named() -> None:
    """The loss is right here, as this simulation computes with the new ones; the next gradient would show it."""
    plan, reference, noise = (train(**more) for more in ({"dp": 2, "fault": "stale copy"}, {}, {"noise": 5e-7}))
    plan.losses[FAULTY] += 0.1
    found = judge(plan, reference, noise, Plan(name="the plan", reference="one process"))
    assert found.first_step == FAULTY + 1 and found.first is not None and found.first.what == "loss"
    assert found.causes[0].startswith(f"rank 1 holds another copy of {NORM}, {FIRST}, {SECOND} after step {FAULTY}")


def test_another_norm_of_clipping_is_told_by_the_updates() -> None:
    found = verified(fault="clip", dp=2, clip=1.0)
    assert found.first_step == FAULTY and not found.ranked("gradient")
    (cause,) = found.causes
    assert (
        cause == "gradients agree and each update is 0.5 times the reference's: gradients are clipped by another norm"
    )


def _with(**about: object) -> Verification:
    plan = train(dp=2, fault="averaged twice", about={**ABOUT, **about})
    return judge(plan, train(about=ABOUT), train(noise=5e-7), Plan(name="the plan", reference="one process"))


def test_reasons_that_are_known_are_named() -> None:
    other = {**ABOUT["samples"], 2: [f"9-{n} 6" for n in range(8)]}
    assert "8 of 8 samples of step 2 are others than in the reference" in _with(samples=other).causes[0]
    padded = {**ABOUT["samples"], 1: [f"9-{n} 7" for n in range(8)]}
    assert "in step 1 samples have other shapes" in _with(samples=padded).causes[0]
    more = {**ABOUT["samples"], 1: [f"1-{n} 6" for n in range(16)]}
    assert "the global batch of step 1 has 16 samples, and 8 in the reference" in _with(samples=more).causes[0]
    random = _with(random=["noise"])
    assert random.verdict == "undecided" and "the forward pass draws random numbers (noise)" in random.causes[0]
    assert "cannot be said" in random.sentence
    assert "the plan skipped the update of step 2" in _with(skipped=[2]).causes[0]
    remark = "batch normalisation (1) uses the statistics of each rank's own share"
    told = train(dp=2, fault="averaged twice", about=ABOUT, remarks={"batch_norm": remark})
    found = judge(told, train(about=ABOUT), train(noise=5e-7), Plan(name="the plan", reference="one process"))
    assert found.causes[0] == remark and remark in found.notes


def test_replicas_that_count_other_numbers_of_labels() -> None:
    remarks = {"loss_is_a_sum": "a sum divided by a sum of weights"}
    plan = train(dp=2, fault="averaged twice", about=ABOUT, remarks=remarks)
    for part, count in zip(plan.about, (13, 29), strict=True):
        part["labels"] = {FAULTY: count}
    found = judge(plan, train(about=ABOUT), train(noise=5e-7), Plan(name="the plan", reference="one process"))
    assert found.causes[:2] == [remarks["loss_is_a_sum"], "replicas count 13, 29 labels in step 2"]


def test_a_lost_causal_mask_is_found_even_where_all_else_agrees() -> None:
    causal, lost = {"causality": {"earlier": 0.0, "last": 0.2}}, {"causality": {"earlier": 0.1, "last": 0.2}}
    about = Plan(name="the plan", reference="one process")
    found = judge(train(dp=2, about=lost), train(about=causal), train(noise=5e-7), about)
    assert found.verdict == "differs" and found.sentence.endswith("its loss agrees, but its causal mask is lost.")
    assert "another last token moves the logits of earlier positions by up to 0.1" in found.causes[0]
    assert judge(train(dp=2, about=lost), train(about=lost), train(noise=5e-7), about).same, "it never was causal"


def test_other_weights_at_the_start() -> None:
    plan = train(dp=2)
    plan.whole("weight", FIRST, 0)
    for rank in range(2):
        plan._step(rank, 0)[f"weight/{FIRST}"] *= 1.5  # type: ignore[index]
    found = judge(plan, train(), train(noise=5e-7), Plan(name="the plan", reference="one process"))
    assert found.first_step == 0 and "before the first step" in found.sentence
    assert f"training begins with other weights ({FIRST})" in found.causes[0]


def test_tensors_of_rounding_errors_are_not_judged() -> None:
    spread = np.array([[1e-7, 1e-6, 0.7], [2e-7, 5e-7, 0.1]])
    allowed = tolerance(spread, 1e-8)
    np.testing.assert_allclose(allowed[:, 1], [1e-5, 1e-5], err_msg="it never shrinks")
    np.testing.assert_allclose(allowed[0, 0], 1e-5, err_msg="at least the median")
    assert math.isinf(allowed[0, 2]) and math.isinf(allowed[1, 2])
    assert relative(np.array([np.nan]), np.array([1.0])) == math.inf
    assert relative(np.array([np.nan]), np.array([np.nan])) == 0.0
    assert relative(np.array([1e-9]), np.array([0.0]), floor=1.0) == pytest.approx(1e-9)


def test_a_loss_that_the_cell_computes_in_bfloat16_has_its_rounding_errors() -> None:
    losses = np.array([1.8984375, 2.75])
    assert (roundoff_of(losses), roundoff_of(losses + 2**-9)) == (2.0**-8, 2.0**-11)
    assert roundoff_of(losses + 1e-4) == 0.0
    np.testing.assert_allclose(loss_tolerance(losses, losses, 1e-6), 2**-7 * losses)
    np.testing.assert_allclose(loss_tolerance(losses + 1e-4, losses, 1e-6)[:1], [1e-3])


def test_it_is_kept_shown_and_read_again(tmp_path: Path) -> None:
    found = verified(fault="averaged twice", dp=2)
    found.write(tmp_path)
    again = Verification.read(tmp_path)
    assert again == found or str(again) == str(found)
    page = found._repr_html_()
    assert page.count("<rect") == 3 * STEPS and found.sentence in page and "averaged twice over dp" in page
    assert "step 2" in page and "<script" not in page
    lines = str(found).splitlines()
    assert lines[0] == found.sentence and lines[1].startswith("  cause: each gradient is 0.5")
    with pytest.raises(RunDirectoryError, match="has not been verified"):
        Verification.read(tmp_path / "none")

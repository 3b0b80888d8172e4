"""Loss scaling, and plans that are refused by name before anything starts."""

from __future__ import annotations

import math

import pytest

from tests.engine.rank_pool import RankFailed

TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}
GEMINI = {"plugin": "gemini", "precision": "bf16"}


PLANS = [*({"plugin": name} for name in ("ddp", "zero1", "zero2", "gemini")), TP, PP]


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_a_step_that_overflows_is_skipped_and_said_so(run_kept, options):
    model = "plain" if options["plugin"] == "gemini" else "gpt2"
    found = run_kept(2, "tests.engine.relaunch:skips", options={**options, "clip": 1.0}, model=model)
    for rank in found:
        assert [step["updated"] for step in rank] == [step["changed"] for step in rank]
        assert not rank[0]["updated"], "the first scale overflows"
        assert sum(step["updated"] for step in rank) >= 6, "it is lowered until gradients fit"
        assert all(step["loss"] is None or math.isfinite(step["loss"]) for step in rank)
    assert len({tuple(step["updated"] for step in rank) for rank in found}) == 1, "all ranks skip the same steps"


@pytest.mark.parametrize(
    "case",
    [
        ("gpt2", {"ranks": 2, **PP}, {"by_loss_fn": True}, "loss_fn", "criterion = lambda outputs, batch:"),
        ("plain", {"ranks": 2, **TP}, {}, "--tp", "--tp 2 cannot split a Sequential"),
        ("plain", {"ranks": 2, **PP}, {}, "--pp", "--plugin ddp, zero1 or zero2"),
        ("llama", {"ranks": 3, "plugin": "hybrid", "tp": 3, "batch_size": 6}, {}, "--tp", "does not divide the 4"),
        ("tied", {"ranks": 4, "plugin": "hybrid", "tp": 4}, {}, "--tp", "2 key-value heads"),
        (
            "tied",
            {"ranks": 4, "plugin": "hybrid", "pp": 4, "micro_batches": 4},
            {},
            "--pp",
            "is more than the 2 layers",
        ),
        ("plain", {**GEMINI, "placement": "auto"}, {}, "--placement", "of a GPU, which CPU ranks do not have"),
    ],
)
def test_what_cannot_be_right_is_refused(run_kept, case):
    model, options, kind, field, words = case
    ((found_field, message),) = run_kept(1, "tests.engine.relaunch:refused", model=model, options=options, **kind)
    assert words in message
    assert found_field == field


def test_data_parallel_hybrid_takes_any_module(run_kept):
    options = {"ranks": 2, "plugin": "hybrid"}
    assert run_kept(1, "tests.engine.relaunch:refused", model="plain", options=options) == [["", "taken"]]


def test_gemini_refuses_weights_that_take_no_part_in_a_loss(pool):
    with pytest.raises(RankFailed, match="took no part in the loss of a batch, and --plugin gemini"):
        pool.run(2, "tests.engine.branching:train", options=GEMINI)

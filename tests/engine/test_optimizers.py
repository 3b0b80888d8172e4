"""Optimizers of Colossal-AI train as one process does under the plugins that take them, or are refused by name."""

from __future__ import annotations

import pytest

from tests.engine.rank_pool import RankFailed

TRAIN = "tests.engine.boosted:train"
TP = {"plugin": "hybrid", "tp": 2}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}


@pytest.mark.parametrize(
    ("optimizer", "reference", "plans"),
    [
        ("HybridAdam", "AdamW", [{"plugin": "zero2"}, TP]),
        ("CPUAdam", "AdamW", [{"plugin": "ddp"}]),
        ("Lamb", "Lamb", [{"plugin": "zero1"}, TP, PP]),
        ("CAME", "CAME", [{"plugin": "ddp"}]),
    ],
)
def test_it_trains_as_one_process(run_kept, run_alone, optimizer, reference, plans):
    """HybridAdam and CPUAdam are compared with torch's AdamW, the others with their own form for one process."""
    arguments = {"model": "shallow", "steps": 6}
    right = run_alone("tests.engine.plain:train", optimizer_kind=reference, **arguments)["losses"]
    assert right[-1] < right[0] - 0.1
    for options in plans:
        found = run_kept(2, TRAIN, options=options, optimizer_kind=optimizer, **arguments)[0]["losses"]
        assert found == pytest.approx(right, abs=1e-5), options


@pytest.mark.parametrize(
    ("optimizer", "plugin", "message"),
    [
        ("CAME", "zero1", "puts DistributedCAME in the place of CAME"),
        ("CAME", "hybrid", "puts DistributedCAME in the place of CAME"),
        ("FusedAdam", "ddp", "have kernels for GPUs only: use HybridAdam"),
        ("GaLoreAdamW8bit", "ddp", "kernels of bitsandbytes that were not tried here"),
    ],
)
def test_what_is_not_right_is_refused_before_the_first_step(pool, optimizer, plugin, message):
    with pytest.raises(RankFailed, match=message):
        pool.run(1, TRAIN, model="shallow", options={"plugin": plugin}, optimizer_kind=optimizer)


def test_gemini_divides_gradients_that_hybrid_adam_does_not(run_kept):
    function = "tests.engine.relaunch:moment_of_half_a_gradient"
    assert run_kept(1, function, is_ours=True) == [0.25], "half of 1.0, halved by the first beta"
    assert run_kept(1, function, is_ours=False) == [0.5], "upstream is mended: the division can go"

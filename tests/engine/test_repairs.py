"""Each repair of Colossal-AI is needed (without it training is wrong, or fails) and goes no further than it says."""

from __future__ import annotations

import pytest

from tests.engine import models
from tests.engine.rank_pool import RankFailed

PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}


def _worst(pool, plain_loop, **arguments) -> float:
    found = pool.run(2, "tests.engine.boosted:train", **arguments)[0]["losses"]
    return max(abs(a - b) for a, b in zip(found, plain_loop(arguments["model"], clip=0.0)["losses"], strict=True))


def test_without_the_causal_mask_attention_sees_the_future(pool, plain_loop):
    arguments = {"model": "gpt2-masked", "options": PP}
    assert _worst(pool, plain_loop, **arguments) <= 1e-5
    # upstream needs a mask to be given, hence "-masked", and then trains happily
    assert _worst(pool, plain_loop, without=["causal-mask"], **arguments) > 1e-3


def test_causal_mask_is_kept_where_upstream_is_used_by_itself(pool):
    repaired = pool.run(2, "tests.engine.upstream:sees_the_future")
    assert repaired == [False, False]
    assert pool.run(2, "tests.engine.upstream:sees_the_future", without=["causal-mask"]) == [True, True]


def test_stale_coordinator(pool):
    assert pool.run(2, "tests.engine.upstream:coordinators") == [[[0, 2], [0, 1]], [[1, 2], [0, 1]]]
    stale = pool.run(2, "tests.engine.upstream:coordinators", forget=False)
    assert stale == [[[0, 2], [0, 2]], [[1, 2], [1, 2]]]


def test_a_pipeline_gives_logits_without_labels(pool):
    assert pool.run(2, "tests.engine.upstream:unlabelled") == [None, [3, 16, models.VOCABULARY]]


@pytest.mark.parametrize(
    ("repair", "complaint"), [("set-device", "set_device|Expected a cuda device"), ("hccl", "hccl|HCCL")]
)
def test_without_it_training_fails(pool, repair, complaint):
    function, arguments = "tests.engine.boosted:train", {"model": "gpt2", "options": PP}
    pool.run(2, function, **arguments)
    with pytest.raises(RankFailed, match=complaint):
        pool.run(2, function, without=[repair], **arguments)


def test_on_gpu_ranks_only_wrong_results_are_mended(pool):
    (applied,) = pool.run(1, "tests.engine.upstream:applied", device_type="cuda")
    always = ["batch-norm", "causal-mask", "causal-window", "coordinator", "fused-kernels", "ring-gather"]
    assert applied == ["absent-weights", *always, "tied-weights"]
    (applied,) = pool.run(1, "tests.engine.upstream:applied", device_type="cpu")
    assert {"hccl", "set-device"} < set(applied)


def test_sharded_layers_draw_the_numbers_of_upstream_and_seed_no_gpu(pool):
    (repaired,) = pool.run(1, "tests.engine.upstream:layer_seeds")
    (upstream,) = pool.run(1, "tests.engine.upstream:layer_seeds", without=["layer-seeds"])
    assert repaired["drawn"] == upstream["drawn"] and repaired["goes_on"] and upstream["goes_on"]
    assert repaired["stacks"] == 0 < upstream["stacks"]


def test_another_version_of_colossalai_is_refused(pool):
    with pytest.raises(RankFailed, match=r"Colossal-AI 0\.6\.0 .* pip install colossalai==0\.5\.0"):
        pool.run(1, "tests.engine.upstream:applied", device_type="cpu", version="0.6.0")

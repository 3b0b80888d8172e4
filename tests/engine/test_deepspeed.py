"""What DeepSpeed's ZeRO 3 makes of weights that a loss goes to beside their modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.rank_pool import RankFailed

TRAIN = "tests.engine.penalised:train"
WHOLE = {"framework": "deepspeed", "plugin": "zero2"}
#: every weight is split; by default DeepSpeed leaves small ones whole
SPLIT = {
    "framework": "deepspeed",
    "plugin": "zero3",
    "ds_config": '{"zero_optimization": {"stage3_param_persistence_threshold": 0}}',
}


def test_a_loss_may_name_a_weight_and_ranks_that_trained_apart_train_together(
    run_kept: Callable[..., list[Any]],
) -> None:
    """DeepSpeed counts parameters on from one training to the next, and ranks compare the numbers: here one of them has
    trained before."""
    expected = run_kept(1, TRAIN, kind="one", options=WHOLE)[0]
    assert expected["is_left"], "no sample used the layer"
    for ranks in (1, 2):
        for found in run_kept(ranks, TRAIN, kind="one", options=SPLIT):
            assert found["losses"] == pytest.approx(expected["losses"], abs=1e-6)
            assert found["is_left"]


def test_a_loss_over_all_parameters_is_refused(run_kept: Callable[..., list[Any]]) -> None:
    """Outside its module a weight is empty, so that its penalty would be 0."""
    with pytest.raises(RankFailed, match=r"computes with 0\.weight, of which --plugin zero3 has a part"):
        run_kept(2, TRAIN, kind="all", options=SPLIT)

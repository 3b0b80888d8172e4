"""Which models an algorithm takes, and what is said where it has nothing to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from workbench.core.config import TrainSpec
from workbench.engine.communication.checks import check_exchange, remark_on_exchange
from workbench.errors import ConfigError


def spec(**options):
    return TrainSpec.from_options({"ranks": 2, "plugin": "ddp", **options})


class Complex(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (torch.nn.Sequential(torch.nn.Embedding(4, 2, sparse=True)), "0 has sparse gradients, which --algorithm bf16"),
        (Complex(), "phase is complex, which --algorithm bf16"),
    ],
)
def test_gradients_that_no_algorithm_takes_are_refused(model, words):
    workload = SimpleNamespace(model=model)
    with pytest.raises(ConfigError, match=words) as caught:
        check_exchange(spec(algorithm="bf16"), workload)
    assert caught.value.field == "model"
    check_exchange(spec(), workload)


def test_one_rank_is_told_that_nothing_is_sent():
    assert remark_on_exchange(spec(algorithm="topk:0.1", ranks=1)) == (
        "there is one data-parallel rank, which sends no gradients: topk:0.1 is not used"
    )
    assert remark_on_exchange(spec(algorithm="topk:0.1")) == remark_on_exchange(spec(ranks=1)) == ""

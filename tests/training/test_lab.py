"""``%dist_lab``: a model trained under several algorithms, one after the other, on two ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench import Run, lab
from workbench.errors import ConfigError

CELL = """
import torch
torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
inputs = torch.randn(64, 8)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :4] * 2)
criterion = torch.nn.MSELoss()
"""
ELEMENTS = 8 * 32 + 32 + 32 * 4 + 4
FLAGS = "-n 2 --framework torch --steps 30 --batch-size 16 --name small"


@pytest.fixture(scope="module")
def found(shell):
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magics.verify.ProgressBar.tell", lambda bar, *told_now: told.append(told_now))
        result = shell.run_cell_magic("dist_lab", f"{FLAGS} --algorithms ddp,bf16,sign+ef,local-sgd:4 --seeds 2", CELL)
    return result, told


def test_each_algorithm_is_trained_with_each_seed_and_kept(found):
    table = found[0].table()
    assert list(table["algorithm"]) == ["ddp", "ddp", "bf16", "bf16", "sign+ef", "sign+ef", *["local-sgd:4"] * 2]
    assert list(table["seed"]) == [1024, 1025] * 4
    assert not any(table["failed"])
    for row in table.itertuples():
        run = Run(row.run)
        assert run.spec.seed == row.seed and run.status == "finished"
        assert run.spec.plan.algorithm == ("" if row.algorithm == "ddp" else row.algorithm)
    assert Run("small-ddp-1024").plan.describe() == "torch ddp2"


def test_bytes_are_those_of_the_algorithms(found):
    sent = found[0].table().groupby("algorithm")["step_bytes"].median()
    assert sent["ddp"] - sent["bf16"] == pytest.approx(2 * 2 * ELEMENTS), "of two ranks, what agreements send is alike"
    assert sent["sign+ef"] < sent["bf16"]
    # seven exchanges of whole weights follow the 29 steps after the first
    assert sent["ddp"] - sent["local-sgd:4"] == pytest.approx(2 * 4 * ELEMENTS * (1 - 7 / 29))


def test_all_reach_the_loss_and_the_sentence_says_who_was_first(found):
    result, told = found
    assert math.isfinite(result.target) and np.isfinite(result.table()["seconds"]).all()
    assert any(f"{name} reached loss" in result.words()[0] for name in ("ddp", "bf16", "sign+ef", "local-sgd:4"))
    assert told[-1][1:] == (240, 240) and "seed 1025 (8 of 8)" in told[-1][0]


def test_frameworks_are_compared_under_one_plan(shell):
    line = "--plan dp2 --steps 12 --batch-size 16 --name apart --frameworks torch,colossal"
    result = shell.run_cell_magic("dist_lab", line, CELL)
    table = result.table()
    assert list(table["framework"]) == ["torch", "colossal"] and not any(table["failed"])
    for row in table.itertuples():
        run = Run(row.run)
        assert (run.spec.plan.framework, run.spec.plan.ranks) == (row.framework, 2) and run.last_step == 12
        assert row.memory_bytes >= 0 and row.step_bytes > 4 * ELEMENTS
    assert any(result.words()[0].startswith(f"{name} took") for name in ("torch", "colossal"))
    first, second = (Run(name).metrics()["loss"].to_numpy() for name in table["run"])
    np.testing.assert_allclose(first, second, rtol=1e-5)
    same = np.array_equal(first, second)
    assert result.words()[1].startswith("Their losses are equal" if same else "In no step do two losses differ by more")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"algorithms": "ddp,bf17"}, "unknown algorithm 'bf17'"),
        ({"seeds": 0}, "--seeds must be"),
        ({"algorithm": "bf16"}, "name all that are compared in --algorithms"),
        ({"plugin": "zero1"}, "algorithms need --plugin ddp"),
        ({"ranks": 1}, "at least two data-parallel ranks"),
        ({"frameworks": "torch,colossal", "algorithms": "bf16"}, "leave one out"),
        ({"frameworks": "torch,colossal", "framework": "torch"}, "name all that are compared in --frameworks"),
        ({"frameworks": "torch,colossal", "plan": "zero1 dp2"}, "zero1 belongs to another framework"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(more, words):
    with pytest.raises(ConfigError, match=words):
        lab({"ranks": 2, "steps": 2, "batch_size": 4}, cell=CELL, **more)

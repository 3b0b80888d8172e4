"""Recipes learn in one plain process, and two ranks find the same as it."""

from __future__ import annotations

import math

import pytest
import torch

from tests.benchmarks.single_process import spec_of, train
from workbench.core.recipe import recipe


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_stdlib_llama_learns() -> None:
    result = train(spec_of("stdlib-llama", steps=40))
    vocabulary = recipe("stdlib-llama").shape("tiny").vocabulary
    assert result.losses[0] == pytest.approx(math.log(vocabulary), abs=0.2), "nothing is known at first"
    assert result.losses[-1] < result.losses[0] - 1.5
    values = result.evaluation.values
    assert values["loss"] == pytest.approx(sum(result.losses[-10:]) / 10, abs=0.6)
    assert values["bits_per_byte"] < 3.5
    (text,) = result.evaluation.texts
    assert text.startswith("import os\n")
    assert len(text) > 60


def test_two_accumulated_pieces_are_one_batch() -> None:
    one = train(spec_of("stdlib-llama", steps=3))
    two = train(spec_of("stdlib-llama", steps=3, accumulate=2))
    assert two.losses == pytest.approx(one.losses, abs=1e-4)


def test_digits_vit_reads_digits() -> None:
    result = train(spec_of("digits-vit", steps=100))
    assert result.losses[-1] < 0.3 < result.losses[0]
    values = result.evaluation.values
    assert values["accuracy"] > 0.9
    matrix = values["confusion_matrix"]
    assert sum(map(sum, matrix)) == 360
    assert sum(matrix[digit][digit] for digit in range(10)) / 360 == pytest.approx(values["accuracy"])


PLANS = [
    ["stdlib-llama", {"plugin": "ddp"}],
    ["stdlib-llama", {"plugin": "hybrid", "tp": 2}],
    ["stdlib-llama", {"plugin": "hybrid", "pp": 2, "micro_batches": 2}],
    ["digits-vit", {"plugin": "zero2"}],
    ["digits-vit", {"plugin": "hybrid", "tp": 2}],
]


def test_two_ranks_find_what_one_process_finds(pool) -> None:
    """Validation values and the sampled text after a few steps are those of a plain process, under each plan."""
    found = pool.run(2, "tests.engine.recipe_ranks:train_all", steps=4, plans=PLANS, timeout_s=600)[0]
    alone = {name: train(spec_of(name, steps=4)).evaluation for name in ("stdlib-llama", "digits-vit")}
    for (name, plan), result in zip(PLANS, found, strict=True):
        assert result["values"]["loss"] == pytest.approx(alone[name].values["loss"], abs=1e-5), plan
        assert result["texts"] == list(alone[name].texts), plan

"""What a spec is when options are left open, and which options are refused."""

import pytest

from workbench.core.config import TrainSpec
from workbench.errors import ConfigError
from workbench.run import resolve as planning

CELL = """
import torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = [(torch.zeros(2), torch.zeros(1))]
criterion = torch.nn.MSELoss()
"""


def resolve(**options: object) -> TrainSpec:
    return planning.resolve(options, default_ranks=2).spec


def test_default_ranks_can_cut_the_default_batch() -> None:
    spec = planning.resolve({"recipe": "stdlib-llama"}, default_ranks=3).spec
    assert spec.plan.ranks == 2 and spec.batch_size == 8


def test_ranks_follow_what_is_up_else_the_plan() -> None:
    assert planning.resolve({"recipe": "stdlib-llama"}, default_ranks=4).spec.plan.ranks == 4
    assert resolve(recipe="stdlib-llama").plan.ranks == 2
    spec = resolve(recipe="stdlib-llama", tp=2, pp=2)
    assert (spec.plan.ranks, spec.plan.plugin, spec.plan.micro_batches) == (4, "hybrid", 2)


def test_flags_win_over_the_recipes_defaults() -> None:
    assert resolve(recipe="stdlib-llama").lr is not None
    assert resolve(recipe="stdlib-llama", lr=0.5).lr == 0.5
    assert resolve(recipe="stdlib-llama", lr=None).lr == resolve(recipe="stdlib-llama").lr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no model was given"),
        ({"recipe": "stdlib-lama"}, "did you mean 'stdlib-llama'"),
        ({"recipe": "stdlib-llama", "size": "tny"}, "did you mean 'tiny'"),
        ({"recipe": "stdlib-llama", "ranks": 3, "plugin": "hybrid", "tp": 3, "batch_size": 3}, "does not divide the"),
        ({"recipe": "stdlib-llama", "tp": "2"}, "--tp must be a whole number, not '2'"),
        ({"recipe": "stdlib-llama", "accumulate": "two"}, "--accumulate must be a whole number"),
        ({"recipe": 3}, "--recipe must be a string, not 3"),
        ({"recipe": "stdlib-llama", "framework": "colosal"}, "unknown framework 'colosal': did you mean 'colossal'"),
        ({"recipe": "stdlib-llama", "epochs": 0}, "--epochs 0 trains nothing"),
        ({"recipe": "digits-vit", "pp": 3, "batch_size": 6}, "--pp 3 does not divide the 4 layers"),
    ],
)
def test_wrong_options(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(**options)


def test_a_recipe_and_a_cell_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--recipe cannot be given: leave it out"):
        planning.resolve({"recipe": "stdlib-llama"}, default_ranks=2, cell=CELL)


def test_a_dataloader_has_its_own_batch_size_which_is_neither_recorded_nor_checked_here() -> None:
    loader = CELL + "dataloader = torch.utils.data.DataLoader(dataset)"
    for options in ({"batch_size": 7, "ranks": 2}, {"ranks": 2}, {}):
        assert planning.resolve(options, default_ranks=2, cell=loader).spec.batch_size == 0
    assert planning.resolve({"batch_size": 6}, default_ranks=2, cell=CELL).spec.batch_size == 6
    for options, cell in (({"batch_size": 0}, CELL), ({"batch_size": 0, "recipe": "stdlib-llama"}, None)):
        with pytest.raises(ConfigError, match="--batch-size must be a whole number of at least 1, not 0"):
            planning.resolve(options, default_ranks=2, cell=cell)

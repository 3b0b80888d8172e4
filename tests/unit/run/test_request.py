"""Flags over a spec file."""

from typing import Any

import pytest

from workbench.errors import ConfigError
from workbench.run import resolve as planning
from workbench.run.resolve import merged

HYBRID = {"recipe": "stdlib-llama", "ranks": 4, "plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 2}
DDP = {"recipe": "stdlib-llama", "ranks": 4, "plugin": "ddp", "tp": 1, "pp": 1, "micro_batches": 1}


@pytest.mark.parametrize(
    ("given", "flags", "plan"),
    [
        (HYBRID, {"plugin": "zero1"}, ("zero1", 1, 1, 1)),
        (HYBRID, {"plugin": "ddp"}, ("ddp", 1, 1, 1)),
        (HYBRID, {"plugin": "zero2", "ranks": 2}, ("zero2", 1, 1, 1)),
        (HYBRID, {"pp": 1}, ("hybrid", 2, 1, 1)),
        (HYBRID, {"tp": 1, "pp": 4}, ("hybrid", 1, 4, 4)),
        (HYBRID, {"tp": 1}, ("hybrid", 1, 2, 2)),
        ({**HYBRID, "micro_batches": 4}, {"tp": 1, "pp": 4}, ("hybrid", 1, 4, 4)),
        ({**HYBRID, "micro_batches": 4, "batch_size": 16}, {"tp": 1}, ("hybrid", 1, 2, 4)),
        (HYBRID, {"steps": 3}, ("hybrid", 2, 2, 2)),
        (DDP, {"tp": 2}, ("hybrid", 2, 1, 1)),
        (DDP, {"pp": 2}, ("hybrid", 1, 2, 2)),
    ],
)
def test_flags_win_and_what_they_leave_no_room_for_falls_back(given: dict, flags: dict, plan: tuple) -> None:
    found = planning.resolve(merged(given, flags), ranks_up=0, default_ranks=2).plan
    assert (found.plugin, found.tp, found.pp, found.micro_batches) == plan


@pytest.mark.parametrize(
    ("given", "flags", "words"),
    [
        (HYBRID, {"plugin": "zero1", "tp": 2}, "--tp 2 needs --plugin hybrid, not zero1"),
        (DDP, {"plugin": "ddp", "pp": 2}, "--pp 2 needs --plugin hybrid"),
        ({"recipe": "stdlib-llama", "micro_batches": "2"}, {"pp": 2}, "--micro-batches must be a whole number"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(given: dict, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        planning.resolve(merged(given, flags), ranks_up=0, default_ranks=2)


def test_a_recipe_says_that_it_shuffles_and_a_spec_can_say_no() -> None:
    def shuffles(**options: object) -> bool:
        return planning.resolve(options, ranks_up=0, default_ranks=2).shuffle

    for recipe, sizes in (("stdlib-llama", ("tiny", "small", "1b")), ("digits-vit", ("tiny", "small"))):
        for size in sizes:
            assert shuffles(recipe=recipe, size=size)
    assert not shuffles(recipe="digits-vit", shuffle=False)

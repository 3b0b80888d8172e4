import argparse

import pytest

from workbench.core import flags
from workbench.core.config import TrainSpec
from workbench.core.recipe import recipes


def test_every_flag_sets_an_option_of_a_spec() -> None:
    assert {flag.option for flag in flags.FLAGS} - {"plan"} <= set(TrainSpec().options())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--nproc_per_node 2 --name my_run", "--nproc-per-node 2 --name my_run"),
        ("--grad_every=5 --config a_b--c_d.toml", "--grad-every=5 --config a_b--c_d.toml"),
        ("-n 2", "-n 2"),
    ],
)
def test_underscores_in_flags(line: str, expected: str) -> None:
    assert flags.normalised(line) == expected


def test_defaults_in_the_help_are_those_of_the_spec_or_said_to_be_the_recipes() -> None:
    spec = TrainSpec().options()
    for flag in flags.FLAGS:
        shown = flag.keywords()["help"].partition(" (default: ")[2]
        if flag.kind is not None and flag.default is None:
            assert flag.kind(shown.removesuffix(")").split(",")[0]) == spec[flag.option], flag
    chosen = {option for recipe in recipes().values() for size in recipe.defaults.values() for option in size}
    assert chosen == set(flags.OF_RECIPES)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--learning-rate=3", "--lr"),
        ("--stepps", "--steps"),
        ("stdlib-llama", "--recipe stdlib-llama"),
        ("stdlib-lama", "--recipe stdlib-llama"),
        ("2", "-n 2"),
        ("my.toml", ""),
        ("--zzz", ""),
        ("zzz", ""),
    ],
)
def test_a_word_that_is_not_understood_is_answered_with_what_was_meant(word: str, meant: str) -> None:
    parser = argparse.ArgumentParser()
    flags.add_to(parser)
    said = flags.not_understood([word, "--more"], parser)
    assert said == f"{word!r} is not understood" + (f": did you mean {meant}?" if meant else "")


@pytest.mark.parametrize(
    ("line", "recipe", "left"),
    [
        ("causal-lm --model DIR --data FILES", "causal-lm", []),
        ("--model DIR causal-lm --data FILES", "causal-lm", []),
        ("causal-lm --modle DIR", "causal-lm", ["--modle", "DIR"]),
        ("digits-vit --recipe causal-lm", "causal-lm", ["digits-vit"]),
        ("causal", None, ["causal"]),
    ],
)
def test_the_name_of_a_recipe_may_stand_for_the_flag(line: str, recipe: str | None, left: list[str]) -> None:
    parser = argparse.ArgumentParser()
    flags.add_to(parser)
    given, words = parser.parse_known_args(line.split())
    assert flags.take_recipe(given, words) == left
    assert given.recipe == recipe


def test_only_what_was_given_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    flags.add_to(parser)
    arguments = parser.parse_args(["-n", "2", "--lr", "3e-3", "--shuffle"])
    assert flags.options_of(arguments) == {"ranks": 2, "lr": 3e-3, "shuffle": True}
    budgets = [parser.parse_args(["--monitor-budget", text]) for text in ("1%", "0.02")]
    assert [flags.options_of(arguments) for arguments in budgets] == [{"budget": 0.01}, {"budget": 0.02}]
    assert flags.options_of(parser.parse_args([])) == {}

import argparse

import pytest

from workbench import flags
from workbench.config import TrainSpec


def test_every_flag_sets_an_option_of_a_spec() -> None:
    assert {flag.option for flag in flags.FLAGS} <= set(TrainSpec().options())


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


def test_only_what_was_given_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    flags.add_to(parser)
    arguments = parser.parse_args(["-n", "2", "--lr", "3e-3", "--shuffle"])
    assert flags.options_of(arguments) == {"ranks": 2, "lr": 3e-3, "shuffle": True}
    assert flags.options_of(parser.parse_args([])) == {}

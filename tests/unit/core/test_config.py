import tomllib
from pathlib import Path

import pytest
import tomli_w

from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec, check_types, read_spec_options
from workbench.core.flags import FLAGS
from workbench.errors import ConfigError, SchemaError


def test_options_and_toml_round_trip(tmp_path: Path) -> None:
    spec = TrainSpec(
        recipe="stdlib-llama",
        name="first",
        plan=ParallelPlan(ranks=4, plugin="hybrid", tp=2, pp=2, micro_batches=2),
        batch_size=16,
        lr=3e-3,
        monitor=MonitorSpec(grad_every=5),
    )
    assert TrainSpec.from_options(spec.options()) == spec
    file = tmp_path / "spec.toml"
    file.write_text(tomli_w.dumps({**spec.to_toml(), "versions": {"torch": "x"}, "machine": {"cores": 2}}))
    assert tomllib.loads(file.read_text())["plan"]["tp"] == 2
    assert TrainSpec.from_options(read_spec_options(file)) == spec


def test_lr_left_to_the_optimizer_is_not_in_the_file() -> None:
    assert "lr" not in TrainSpec().to_toml()


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"plugin": "zero4"}, "--plugin", "did you mean 'zero"),
        ({"ranks": 3, "plugin": "hybrid", "tp": 2}, "--tp", "use -n 2"),
        ({"tp": 2, "ranks": 2}, "--tp", "needs --plugin hybrid"),
        ({"ranks": 2, "batch_size": 7}, "--batch-size", "use 8"),
        ({"steps": 0}, "--steps", "at least 1"),
        ({"snapshot_every": 5}, "--snapshot-every", "add --max-restarts 3"),
        ({"lr": float("nan")}, "--lr", "finite"),
        ({"precision": "bf61"}, "--precision", "did you mean 'bf16'"),
        ({"name": "../up"}, "--name", "letters"),
        ({"micro_batches": 2, "plugin": "hybrid"}, "--micro-batches", "--pp 2"),
        ({"pp": 2, "ranks": 2, "plugin": "hybrid"}, "--micro-batches", "pass --micro-batches 2"),
        ({"seed": 2**40}, "--seed", "below 2"),
        ({"grad_every": -1}, "--grad-every", "0: never"),
        ({"stepz": 3}, "stepz", "did you mean 'steps'"),
        ({"ranks": True}, "--nproc-per-node", "whole number"),
    ],
)
def test_wrong_values_say_what_to_change(options: dict, field: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        TrainSpec.from_options(options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"tp": "2"}, "--tp", r"must be a whole number, not '2' \(str\)"),
        ({"plugin": 3}, "--plugin", "must be a string, not 3"),
        ({"shuffle": "no"}, "--shuffle", "must be true or false, not 'no'"),
        ({"shuffle": 1}, "--shuffle", "must be true or false, not 1"),
        ({"sample_hz": "2"}, "sample_hz", "must be a number, not '2'"),
        ({"steps": 1.5}, "--steps", "must be a whole number, not 1.5"),
        ({"steps": True}, "--steps", "must be a whole number, not True"),
        ({"name": 3}, "--name", "must be a string, not 3"),
        ({"lr": "3e-3"}, "--lr", "must be a number"),
        ({"lr": True}, "--lr", "must be a number"),
        ({"grad_every": 2.0}, "--grad-every", "must be a whole number"),
        ({"level": 1}, "--monitor", "must be a string"),
        ({"budget": "1%"}, "--monitor-budget", "must be a number"),
        ({"recipe": ["a"]}, "--recipe", "must be a string"),
        ({"ranks": {"a": 1}}, "--nproc-per-node", "must be a whole number"),
    ],
)
def test_wrong_types_name_field_value_and_what_is_expected(options: dict, field: str, words: str) -> None:
    for refuse in (TrainSpec.from_options, check_types):
        with pytest.raises(ConfigError, match=words) as caught:
            refuse(options)
        assert caught.value.field == field


def test_every_option_has_a_type_that_is_checked_and_the_flag_people_type() -> None:
    class Odd:
        """Nothing that an option can be."""

    flags = {flag.option: flag.names[-1] for flag in FLAGS}
    for name in TrainSpec().options():
        with pytest.raises(ConfigError, match="must be") as caught:
            check_types({name: Odd()})
        assert caught.value.field == flags.get(name, name)


def test_a_whole_number_is_a_number() -> None:
    assert TrainSpec(lr=1, clip=2).lr == 1


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("steps = ", ConfigError, "not valid TOML"),
        ("stepz = 3", ConfigError, "did you mean 'steps'"),
        ("tp = 2", ConfigError, r"belongs in table \[plan\]"),
        ("[plan]\nsteps = 2", ConfigError, "belongs in the top"),
        ("plan = 3", ConfigError, r"write \[plan\]"),
        ("[plans]\ntp = 2", ConfigError, r"unknown table \[plans\]"),
        ("spec_version = 99", SchemaError, "update dist-workbench"),
    ],
)
def test_bad_spec_files(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(text)
    with pytest.raises(error, match=words):
        read_spec_options(file)


def test_a_missing_spec_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        read_spec_options(tmp_path / "nowhere.toml")

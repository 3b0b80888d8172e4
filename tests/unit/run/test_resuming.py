"""Whose options and cell a run has that goes on from a checkpoint; and checkpoints as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.errors import ConfigError, RunDirectoryError, SchemaError
from workbench.run.resolve import resolve, resumed
from workbench.rundir import checkpoints
from workbench.rundir import directory as run_directory


def write_checkpoint(run: Path, step: int, *, saved_at: float, asked: bool = False, **values: Any) -> Path:
    path = checkpoints.directory(run, step)
    temporary = path.with_name(path.name + checkpoints.TEMPORARY)
    temporary.mkdir(parents=True)
    (temporary / "rank-00000.json").write_text("{}")
    files = {"rank-00000.json": {"sha256": checkpoints.digest(temporary / "rank-00000.json"), "bytes": 2}}
    state = {"trainer": {"settings": {"values": values}}}
    index = {"format": 1, "saved_at": saved_at, "asked": asked, "files": files, "state": state}
    (temporary / "index.json").write_text(json.dumps(index))
    checkpoints.publish(path)
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    plan = ParallelPlan(ranks=2, plugin="hybrid", tp=2)
    path = run_directory.create(TrainSpec(name="first", plan=plan, steps=50, lr=0.1, seed=3), cell="model = 1")
    write_checkpoint(path, 20, saved_at=2.0, clip=1.0, accumulate=2)
    write_checkpoint(path, 10, saved_at=3.0, clip=0.5, accumulate=1)
    return path


def test_options_and_cell_come_from_the_run(run: Path) -> None:
    options, cell = resumed({"resume": "first@20", "steps": None}, None)
    assert cell == "model = 1" and options["resume"] == f"{run}@20"
    assert {name: options[name] for name in ("steps", "seed", "tp", "clip", "accumulate", "name")} == {
        "steps": 50,
        "seed": 3,
        "tp": 2,
        "clip": 1.0,
        "accumulate": 2,
        "name": "first",
    }
    assert TrainSpec.from_options(options).plan.tp == 2 and "recipe" not in options


def test_what_is_given_wins_and_another_plan_fits(run: Path) -> None:
    options, cell = resumed({"resume": str(run), "plugin": "zero1", "lr": 0.5, "steps": 60}, "model = 2")
    assert cell == "model = 2" and options["resume"].endswith("@10"), "the newest is the one written last"
    spec = TrainSpec.from_options(options)
    assert (spec.plan.plugin, spec.plan.tp, spec.lr, spec.steps) == ("zero1", 1, 0.5, 60)
    options, cell = resumed({"resume": "first@20", "pp": 2, "tp": 1}, None)
    plan = resolve({**options, "accumulate": 1}, ranks_up=2, default_ranks=2, cell=cell).plan
    assert (plan.pp, plan.tp, plan.micro_batches) == (2, 1, 2)


def test_without_resume_nothing_changes() -> None:
    assert resumed({"lr": 1.0}, "cell") == ({"lr": 1.0}, "cell")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resume": "fist"}, "did you mean 'first'"),
        ({"resume": "first@30"}, "there is one at 10, 20"),
        ({"resume": "first@x"}, "RUN@STEP"),
        ({"resume": "first@20", "steps": 20}, "more than 20"),
    ],
)
def test_what_cannot_be_gone_on_from(run: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resumed(options, None)


def test_a_run_without_a_checkpoint(run: Path) -> None:
    run_directory.create(TrainSpec(name="bare"))
    with pytest.raises(ConfigError, match="--save-every"):
        resumed({"resume": "bare"}, None)


def test_unfinished_and_replaced_checkpoints(run: Path) -> None:
    parent = run / "checkpoints"
    (parent / "step-000030.tmp").mkdir()
    (parent / "step-000030.tmp" / "index.json").write_text("{}")
    (parent / "step-000040").mkdir()
    assert checkpoints.steps(run) == [10, 20]
    checkpoints.find(run, 20).rename(parent / "step-000020.old")  # its writer died between two renames
    assert checkpoints.steps(run) == [10, 20]
    assert checkpoints.find(run, 20).name == "step-000020"
    write_checkpoint(run, 20, saved_at=5.0, clip=2.0)
    assert checkpoints.read_index(checkpoints.find(run))["saved_at"] == 5.0
    assert not (parent / "step-000020.old").exists()


def test_damage_is_named(run: Path) -> None:
    path = checkpoints.find(run, 20)
    checkpoints.verify(path)
    (path / "rank-00000.json").write_text("[]")
    with pytest.raises(RunDirectoryError, match=r"rank-00000.json was changed or is damaged"):
        checkpoints.verify(path)
    (path / "rank-00000.json").unlink()
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        checkpoints.verify(path)
    (path / "index.json").write_text('{"format": 99}')
    with pytest.raises(SchemaError, match="update dist-workbench"):
        checkpoints.read_index(path)
    (path / "index.json").write_text('{"form')
    with pytest.raises(RunDirectoryError, match="use another"):
        checkpoints.read_index(path)


def test_keep(run: Path) -> None:
    write_checkpoint(run, 30, saved_at=1.0)
    write_checkpoint(run, 5, saved_at=0.5, asked=True)
    assert checkpoints.remove_old(run, 0) == []
    assert sorted(checkpoints.remove_old(run, 1)) == [20, 30] and checkpoints.steps(run) == [5, 10]

"""Whose options and cell a run has that goes on from a checkpoint; and checkpoints as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.errors import ConfigError, RunDirectoryError, SchemaError
from workbench.run.resolve import resolve
from workbench.rundir import checkpoints
from workbench.rundir import directory as run_directory

CELL = "model = optimizer = dataset = criterion = 1\n"
OTHER_CELL = CELL + "# another\n"


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
    path = run_directory.create(TrainSpec(name="first", plan=plan, steps=50, lr=0.1, seed=3), cell=CELL)
    write_checkpoint(path, 20, saved_at=2.0, clip=1.0, accumulate=2)
    write_checkpoint(path, 10, saved_at=3.0, clip=0.5, accumulate=1)
    return path


def test_options_and_cell_come_from_the_run(run: Path) -> None:
    asked = resolve({"resume": "first@20", "steps": None}, default_ranks=2)
    spec = asked.spec
    assert asked.cell == CELL and spec.resume == f"{run}@20" and spec.recipe == ""
    assert (spec.steps, spec.seed, spec.plan.tp, spec.name) == (50, 3, 2, "first")
    assert (spec.clip, spec.accumulate) == (1.0, 2), "as they were set when the checkpoint was written"
    assert spec.lr is None, "the rate of a cell's optimizer is in its checkpoint"


def test_what_is_given_wins_and_another_plan_fits(run: Path) -> None:
    overrides = {"resume": str(run), "plugin": "ddp", "lr": 0.5, "steps": 60}
    asked = resolve(overrides, cell=OTHER_CELL, default_ranks=2)
    assert asked.cell == OTHER_CELL and asked.spec.resume.endswith("@10"), "the newest is the one written last"
    spec = asked.spec
    assert (spec.plan.plugin, spec.plan.tp, spec.lr, spec.steps) == ("ddp", 1, 0.5, 60)
    other = resolve({"resume": "first@20", "pp": 2, "tp": 1, "accumulate": 1}, default_ranks=2).spec.plan
    assert (other.pp, other.tp, other.micro_batches) == (2, 1, 2)


def test_a_plan_in_words_replaces_that_of_the_run(run: Path) -> None:
    """Also where the plugin before takes the sizes that the words name, as ZeRO-2 takes tp."""
    plan = ParallelPlan(ranks=2, plugin="zero2")
    path = run_directory.create(TrainSpec(name="sharded", plan=plan, steps=50), cell=CELL)
    write_checkpoint(path, 20, saved_at=2.0)
    for words, described in (("tp2", "tp2"), ("dp2", "ddp2"), ("cp2", "context cp2"), ("torch fsdp", "fsdp2")):
        found = resolve({"resume": "sharded@20", "plan": words}, default_ranks=2).spec.plan
        assert found.describe() == described
    kept = resolve({"resume": "sharded@20", "tp": 2}, default_ranks=2).spec.plan
    assert kept.describe() == "zero2 tp2", "flags change the plan of the run"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resume": "fist"}, "did you mean 'first'"),
        ({"resume": "first@30"}, "there are checkpoints at 10, 20"),
        ({"resume": "first@x"}, "RUN@STEP"),
        ({"resume": "first@20", "steps": 20}, "greater than 20"),
    ],
)
def test_what_cannot_be_resumed(run: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(options, default_ranks=2)


def test_a_run_without_a_checkpoint(run: Path) -> None:
    run_directory.create(TrainSpec(name="bare"))
    with pytest.raises(ConfigError, match="--save-every"):
        resolve({"resume": "bare"}, default_ranks=2)


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

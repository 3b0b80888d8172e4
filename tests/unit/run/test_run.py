"""A run read from its directory, without ranks."""

import json
from pathlib import Path

import pytest
from IPython.lib.pretty import pretty

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.records import Command
from workbench.errors import RunDirectoryError, RunError
from workbench.run.api import Run
from workbench.rundir import directory as run_directory
from workbench.rundir.log import RankLogWriter

SPEC = TrainSpec(name="first", plan=ParallelPlan(ranks=2), steps=10)
FAILURE = {"ename": "ValueError", "evalue": "bad", "traceback": "line 3 of the cell", "peer": False}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    return run_directory.create(SPEC, cell="model = 1")


def tell(path: Path, rank: int, name: str, value: object = None, kind: str = "state") -> None:
    directory = RankLogWriter(path, rank, flush_s=60)
    # each writer starts its files anew, so a rank says everything in one go
    with directory as log:
        log.event(kind, name, value)


def test_a_directory_holds_all_that_is_needed(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o700
    run = Run(path)
    assert run.spec == SPEC and run.name == "first" and run.status == "starting" and run.last_step == 0
    assert (path / "cell.py").read_text() == "model = 1"
    assert Run("first").path == Run(None).path == path


def test_names_that_are_no_run(path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="did you mean 'first'"):
        Run("fist")


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "file" / "runs"))
    with pytest.raises(RunDirectoryError, match="WORKBENCH_HOME"):
        run_directory.create(SPEC)


def test_a_full_disk_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1024})())
    with pytest.raises(RunDirectoryError, match="full"):
        run_directory.create(SPEC)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["starting", "starting"], "starting"),
        (["running", "starting"], "running"),
        (["finished", "running"], "running"),
        (["finished", "finished"], "finished"),
        (["stopped", "stopped"], "stopped"),
    ],
)
def test_status(path: Path, states: list[str], expected: str) -> None:
    for rank, name in enumerate(states):
        tell(path, rank, name)
    assert Run(path).status == expected


def test_a_run_whose_owner_is_gone_is_lost(path: Path) -> None:
    tell(path, 0, "running")
    owner = json.loads((path / "owner.json").read_text())
    (path / "owner.json").write_text(json.dumps({**owner, "created": 1.0}))
    run = Run(path)
    assert run.status == "lost"
    with pytest.raises(RunError, match="was lost at step 0"):
        run.wait()
    with pytest.raises(RunError, match="so stop has no effect"):
        run.stop()


def test_a_failure_names_the_rank_that_was_first_and_no_peer(path: Path) -> None:
    tell(path, 0, "failed", {**FAILURE, "ename": "PeerFailed", "peer": True})
    tell(path, 1, "failed", FAILURE)
    with pytest.raises(RunError, match=r"failed at step 0 on rank 1: ValueError: bad") as caught:
        Run(path).wait()
    assert caught.value.traceback == "line 3 of the cell"


def test_ranks_with_the_same_error_are_named_together(path: Path) -> None:
    for rank in (0, 1):
        tell(path, rank, "failed", FAILURE)
    with pytest.raises(RunError, match="on ranks 0-1"):
        Run(path).wait()


def test_a_dead_rank_explains_the_failure_of_its_peers(path: Path) -> None:
    tell(path, 0, "failed", {**FAILURE, "evalue": "connection closed"})
    tell(path, -1, "died", {"rank": 1, "reason": "killed by signal 9"}, kind="rank")
    with pytest.raises(RunError, match="on rank 1: killed by signal 9"):
        Run(path).wait()


def test_stop_is_a_line_in_the_control_file(path: Path) -> None:
    run = Run(path)
    run.stop()
    commands = [Command.from_line(text) for text in (path / "control.jsonl").read_text().splitlines()]
    assert [command.name for command in commands] == ["stop"] and commands[0].who


def test_stop_of_a_run_whose_control_file_is_gone_says_what_ends_it(path: Path) -> None:
    run = Run(path)
    (path / "control.jsonl").unlink()
    with pytest.raises(RunDirectoryError, match=r"cannot be written .* %dist_down"):
        run.stop()


def test_waiting_has_a_limit(path: Path) -> None:
    with pytest.raises(TimeoutError, match="still starting after 0"):
        Run(path).wait(timeout=0.1)


def test_frames_have_their_columns_without_rows(path: Path) -> None:
    run = Run(path)
    assert list(run.metrics())[:2] == ["step", "time"]
    assert "rss_bytes" in run.devices() and "kind" in run.events() and "norm" in run.gradients()
    assert run.samples() == [] and run.output() == ""


def test_an_output_says_how_far_a_run_is_only_once_that_changes_no_more(path: Path) -> None:
    """A notebook keeps the output below the panel for ever."""
    run = Run(path)
    assert pretty(run) == f"<Run 'first': {SPEC.plan.describe()}, 10 steps>"
    assert "starting at step 0/10" in repr(run), "what is printed is of that moment"
    for rank in (0, 1):
        tell(path, rank, "finished")
    assert pretty(run) == repr(run) and "finished" in repr(run)

"""Who owns a run, and whether it still lives: on this host by its process, elsewhere by the run's heartbeat."""

import json
import os
import platform
import time
from pathlib import Path

import psutil
import pytest

from tests.fake_run import make_fake_run
from tests.waiting import until
from workbench.errors import RunDirectoryError, RunError
from workbench.history import retention
from workbench.history.row import present_state, read_row
from workbench.rundir import log, state
from workbench.rundir.log import HEARTBEAT_FILE, RankLogWriter
from workbench.rundir.owner import OWNER_FILE, boot_id


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that trains, by its logs."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    path = make_fake_run(tmp_path / "2026-01-01-000000-fake", steps=20, layers=1, state="running")
    owned_by(path, host="another-host")
    return path


def owned_by(run: Path, *, host: str, pid: int | None = None, boot: str = "another-boot") -> None:
    created = psutil.Process(os.getpid()).create_time()
    about = {"host": host, "pid": pid or os.getpid(), "created": created, "boot": boot}
    (run / OWNER_FILE).write_text(json.dumps(about), encoding="utf-8")


def last_seen(run: Path, seconds_ago: float) -> None:
    """Every sign of life of the run is that old."""
    then = time.time() - seconds_ago
    for file in run.rglob("*"):
        os.utime(file, (then, then))


def test_commands_after_a_moment_are_found_by_their_bytes(run: Path) -> None:
    from workbench.core.records import Command
    from workbench.rundir.commands import CommandReader, offset_after

    lines = [Command(time=float(n), name="pause", value=None, who="ann", id=n).to_line() for n in (1, 2, 3)]
    (run / "control.jsonl").write_text(lines[0] + "no command\n" + lines[1] + lines[2])
    left = CommandReader(run, offset_after(run, 2.0)).read()
    assert [getattr(each, "id", None) for each in left] == [3]
    assert CommandReader(run, offset_after(run, 9.0)).read() == [] and offset_after(run, 0.5) == 0


def test_a_run_of_another_host_lives_until_its_lease_has_lapsed(run: Path) -> None:
    (run / HEARTBEAT_FILE).touch()
    assert state.owner_is_alive(run)
    assert state.present_state("running", run) == "running"
    last_seen(run, state.LEASE_S + 60)
    assert not state.owner_is_alive(run)
    assert state.present_state("running", run) == "lost"
    (run / HEARTBEAT_FILE).touch()
    assert state.owner_is_alive(run), "the heartbeat alone is enough"


def test_a_run_without_a_heartbeat_lives_while_its_logs_grow(run: Path) -> None:
    (run / HEARTBEAT_FILE).unlink(missing_ok=True)
    last_seen(run, state.LEASE_S + 60)
    assert not state.owner_is_alive(run)
    next(run.glob("rank-*/steps.arrow")).touch()
    assert state.owner_is_alive(run)


def test_an_owner_of_this_host_is_judged_by_its_process(run: Path) -> None:
    owned_by(run, host=platform.node(), boot=boot_id())
    last_seen(run, state.LEASE_S + 60)
    assert state.owner_is_alive(run), "its process lives, however quiet the run is"
    owned_by(run, host=platform.node(), boot=boot_id(), pid=2**22 - 1)
    (run / HEARTBEAT_FILE).touch()
    assert not state.owner_is_alive(run), "its process is gone, however new the heartbeat is"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"host": 3}', '{"host": "a", "pid": "x", "created": 0}', "null"])
def test_an_owner_file_that_cannot_be_read_leaves_it_to_the_lease(run: Path, text: str) -> None:
    (run / OWNER_FILE).write_text(text, encoding="utf-8")
    assert state.owner_is_alive(run)
    last_seen(run, state.LEASE_S + 60)
    assert not state.owner_is_alive(run)


def test_a_run_without_an_owner_is_nobodys(run: Path) -> None:
    (run / OWNER_FILE).unlink()
    assert not state.owner_is_alive(run)


def test_the_lease_counts_by_the_clock_of_the_disk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / HEARTBEAT_FILE).touch()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400)
    assert state.owner_is_alive(run), "this host's clock is a day ahead"
    assert not list(run.parent.glob(".clock-*")), "what was touched to read the clock is removed"


def test_a_live_run_of_another_host_is_neither_removed_nor_archived_nor_pruned(run: Path) -> None:
    (run / HEARTBEAT_FILE).touch()
    for act in (retention.remove, retention.archive):
        with pytest.raises(RunError, match=r"is running at step \d+: stop it first"):
            act(run)
    row = read_row(run)
    assert present_state(row, run) == "running"
    assert retention.prunable([row], keep=0) == []
    assert run.is_dir()
    last_seen(run, state.LEASE_S + 60)
    assert present_state(row, run) == "lost"
    assert retention.remove(run) >= 0
    assert not run.exists()


def test_whoever_logs_keeps_the_heartbeat(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "HEARTBEAT_S", 0.0)
    (run / HEARTBEAT_FILE).unlink(missing_ok=True)
    with RankLogWriter(run, 0, flush_s=0.01):
        until((run / HEARTBEAT_FILE).exists)
    assert (run / HEARTBEAT_FILE).stat().st_mode & 0o777 == 0o600


def test_a_run_is_found_by_directory_name_then_by_name_then_by_path(run: Path, tmp_path: Path) -> None:
    newer = make_fake_run(tmp_path / "2026-01-02-000000-fake", steps=5, layers=1)
    assert state.find(run.name) == run
    assert state.find("fake") == newer, "the newest of that name"
    assert state.find(run) == state.find(str(run)) == run
    assert state.find() == newer
    with pytest.raises(RunDirectoryError, match=r"no run 'fakes' .*: did you mean 'fake'\? \(known: fake\)"):
        state.find("fakes")


def test_a_run_that_is_not_found_is_told_with_the_newest_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    with pytest.raises(RunDirectoryError, match="known: none"):
        state.find("nothing")
    for number in range(10):
        make_fake_run(tmp_path / f"2026-01-01-00000{number}-r{number}", steps=1, layers=1)
    with pytest.raises(RunDirectoryError, match=r"known: r9, r8, r7, r6, r5, r4, r3, r2 and 2 more$"):
        state.find("nothing")
    with pytest.raises(RunDirectoryError, match="did you mean '2026-01-01-000003-r3'"):
        state.find("2026-01-01-00003-r3")

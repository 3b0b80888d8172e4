"""Ranks that fail, die or cannot write, on two real ranks: the run says so soon, and the session can go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import CELL, SLOW, train
from tests.waiting import WAIT_S, until
from workbench.cluster.session import Session
from workbench.core.config import TrainSpec
from workbench.errors import RunDirectoryError, RunError
from workbench.run import job as run_job
from workbench.rundir import directory as run_directory


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that do not end are soon killed; one that writes how it failed has as long as a busy machine takes."""
    monkeypatch.setattr(run_job, "GRACE_S", 1.0)
    monkeypatch.setattr(run_job, "INTERRUPTED_S", 1.0)
    monkeypatch.setattr(run_job, "FAILING_S", WAIT_S)


def again(shell: InteractiveShell) -> str:
    return train(shell, "-n 2 --steps 2 --quiet", CELL).wait(timeout=300).status


def test_a_peer_that_waits_for_a_rank_that_cannot_start_is_interrupted_and_lives(
    shell: InteractiveShell, two_ranks: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = run_directory.create

    def blocked(spec: TrainSpec, cell: str | None = None, **_: object) -> Path:
        path = create(spec, cell)
        (path / "rank-00001").write_text("in the way")
        return path

    monkeypatch.setattr(run_directory, "create", blocked)
    monkeypatch.setattr(run_job, "GRACE_S", 1.0)
    monkeypatch.setattr(run_job, "INTERRUPTED_S", WAIT_S)
    failed = train(shell, "-n 2 --steps 2 --quiet", CELL)
    with pytest.raises(RunError, match="on rank 1: RunDirectoryError: cannot make"):
        failed.wait(timeout=300)
    monkeypatch.undo()
    assert not two_ranks.dead and again(shell) == "finished"


FAILS_AND_STAYS_CONNECTED = """import os, torch.distributed as dist
    if os.environ["RANK"] == "1":
        dist.planted = dist.destroy_process_group
        dist.destroy_process_group = lambda *_: None
        raise AssertionError("planted")"""


FAILS_BESIDE_A_DEAF_RANK = """import os, signal
    if os.environ["RANK"] == "0":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        open({deaf!r}, "w").close()
        time.sleep(600)
    while not os.path.exists({deaf!r}):
        time.sleep(0.01)
    raise AssertionError("planted")"""


def test_a_peer_that_waits_in_a_collective_is_released(
    shell: InteractiveShell, two_ranks: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with NCCL, whose collectives see no peer that left: rank 0 waits in DDP's reduction, deaf to an interrupt."""
    monkeypatch.setattr(run_job, "GRACE_S", WAIT_S)
    run = train(shell, "-n 2 --steps 50 --quiet", SLOW.replace("time.sleep(0.02)", FAILS_AND_STAYS_CONNECTED))
    with pytest.raises(RunError, match="rank 1: AssertionError: planted"):
        run.wait(timeout=300)
    undo = "import torch.distributed as dist; dist.destroy_process_group = dist.planted; dist.destroy_process_group()"
    two_ranks.wait(two_ranks.submit(undo, [1], in_group=False))  # rank 1 could not leave its group for another
    assert not two_ranks.dead and again(shell) == "finished"


def test_a_peer_that_cannot_be_released_is_ended_and_the_way_on_is_said(
    shell: InteractiveShell, two_ranks: Session, impatient: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = FAILS_BESIDE_A_DEAF_RANK.format(deaf=str(tmp_path / "deaf"))
    run = train(shell, "-n 2 --steps 50 --quiet", SLOW.replace("time.sleep(0.02)", fails))
    with pytest.raises(
        RunError, match=r"rank 1: AssertionError: planted; rank 0 waited for it and was ended: run %dist_up"
    ):
        run.wait(timeout=300)
    pid = two_ranks.pids[1]
    assert again(shell) == "finished" and Session.current() is two_ranks and two_ranks.pids[1] == pid
    said = capsys.readouterr().out
    assert "1 rank is up and the run needs 2: starting the others" in said
    assert "rank 0 was started anew, without its variables; rank 1 keeps its variables" in said


def test_a_run_whose_directory_is_deleted_is_ended_and_leaves_the_session_usable(
    shell: InteractiveShell,
    two_ranks: Session,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_job, "INTERRUPTED_S", WAIT_S)
    run = train(shell, "-n 2 --steps 5000 --quiet --name gone", SLOW)
    until(lambda: run.last_step >= 3)
    shutil.rmtree(run.path)
    assert {each.state for each in two_ranks.status()} <= {"training", "idle"}  # it answers all the same
    assert again(shell) == "finished" and not two_ranks.dead
    assert f"warning: {run.path} was deleted, so the run is ended" in capsys.readouterr().err
    with pytest.raises(RunDirectoryError, match=r"gone can no longer be read.*Was it moved or deleted\?"):
        run.wait(timeout=1)


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)"


def test_a_disk_that_fills_up_does_not_stop_training_and_is_named_at_the_end(
    shell: InteractiveShell, two_ranks: Session
) -> None:
    cell = SLOW.replace("time.sleep(0.02)", "time.sleep(0.02); print('noise ' * 20)") + FULL
    run = train(shell, "-n 2 --steps 60 --quiet", cell)
    with pytest.raises(RunError, match=r"on ranks 0-1: LogLost: it finished after step 60.*File too large \(disk of"):
        run.wait(timeout=300)
    two_ranks.execute(ROOM).raise_on_error()
    assert not two_ranks.dead and again(shell) == "finished"

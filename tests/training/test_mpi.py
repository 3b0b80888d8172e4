"""MPI's ranks, in an environment of their own: cells that use mpi4py, a run up to its report, and ranks that end."""

from __future__ import annotations

import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.environments import interpreter
from tests.training.test_dist_train import CELL, SLOW, train
from tests.waiting import WAIT_S, until
from workbench import Run
from workbench.cluster.session import Session
from workbench.core.config import SPEC_FILE
from workbench.errors import RunError
from workbench.run import job as run_job

LINE = "digits-vit -n 2 --steps 6 --accumulate 2 --clip 0.5 --grad-every 1 --wait --quiet"
ASKED = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.allreduce(rank + 1))"
#: after the first steps, in which ranks compare their weights by torch's group
RAISES = """import os
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls > 20:
        raise AssertionError("planted")"""


@pytest.fixture(scope="module", autouse=True)
def no_ranks_stay(shell: InteractiveShell) -> Iterator[None]:
    interpreter("mpi")
    yield
    current = Session.current()
    if current is not None:
        current.down()


@pytest.fixture
def ranks() -> Session:
    """Two ranks of MPI, alive and idle."""
    return Session.up(2, framework="mpi")


def check_world(session: Session) -> None:
    """Cells find the world of both ranks, and the memory that these share has no name that could be left."""
    found = session.execute(ASKED)
    found.raise_on_error()
    assert [found[rank].stdout.strip() for rank in range(2)] == ["0 3", "1 3"]
    for pid in session.pids.values():
        shared = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/mpich_shm_" in line]
        assert shared and all(line.endswith("(deleted)") for line in shared)


def test_a_run_trains_as_with_colossal_and_cells_find_the_world(shell: InteractiveShell) -> None:
    found = {}
    for framework in ("colossal", "mpi"):
        shell.run_line_magic("dist_train", f"{LINE} --framework {framework} --name with-{framework}")
        run = found[framework] = Run(f"with-{framework}")
        assert run.status == "finished" and run.last_step == 6
    check_world(Session.current())
    theirs, ours = (run.metrics() for run in found.values())
    assert list(ours["loss"]) == pytest.approx(list(theirs["loss"]), abs=1e-5)
    assert list(ours["grad_norm"]) == pytest.approx(list(theirs["grad_norm"]), rel=1e-4)
    assert set(run.gradients()["scope"]) == {"local", "reduced"}
    assert set(run.phases()["phase"]) >= {"forward", "backward", "communication"}
    versions = tomllib.loads((run.path / SPEC_FILE).read_text())["versions"]
    assert versions["mpi4py"].startswith("4.") and versions["mpich"].startswith("5.")
    shell.run_line_magic("dist_report", run.name)
    assert "mpi" in (run.path / "report.html").read_text()


def test_a_rank_that_raises_is_told_and_the_other_leaves_mpi(
    ranks: Session, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_job, "GRACE_S", WAIT_S)
    run = train(
        shell, "-n 2 --framework mpi --steps 50 --quiet", "calls = 0\n" + SLOW.replace("time.sleep(0.02)", RAISES)
    )
    with pytest.raises(RunError, match="rank 1: AssertionError: planted"):
        run.wait(timeout=WAIT_S)
    assert (
        not ranks.dead
        and train(shell, "-n 2 --framework mpi --steps 2 --quiet", CELL).wait(timeout=WAIT_S).status == "finished"
    )


def test_a_rank_that_is_killed_is_told_and_all_are_started_anew(ranks: Session, shell: InteractiveShell) -> None:
    """MPI's world cannot be joined by a new rank."""
    run = train(shell, "-n 2 --framework mpi --steps 5000 --quiet", SLOW)
    until(lambda: run.last_step >= 2)
    before = ranks.pids
    ranks.signal(signal.SIGKILL, [1])
    with pytest.raises(RunError, match="rank 1"):
        run.wait(timeout=WAIT_S)
    until(lambda: ranks.dead)
    renewed = Session.up(2)
    assert renewed is not ranks and not set(before.values()) & set(renewed.pids.values())
    check_world(renewed)


def test_where_one_rank_is_started_anew_all_are(ranks: Session) -> None:
    before = ranks.pids
    ranks.restart_ranks([0])
    assert ranks.renewal is not None and ranks.renewal.replaced == (0, 1)
    assert not set(before.values()) & set(ranks.pids.values())
    check_world(ranks)


def test_some_of_the_ranks_train(shell: InteractiveShell, ranks: Session) -> None:
    more = Session.up(3)
    for count in (2, 1):
        run = train(shell, f"-n {count} --framework mpi --steps 3 --quiet", CELL).wait(timeout=WAIT_S)
        assert run.status == "finished" and Session.current() is more

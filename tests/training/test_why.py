"""Ranks that hang are explained: in a cell, where only torch recorded the collective, and in a training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

import workbench
from tests.training.faults.machine import throttled
from tests.waiting import WAIT_S, once, until
from workbench.cli.main import main
from workbench.cluster import releases
from workbench.cluster.cells import Submission
from workbench.cluster.faults import fault
from workbench.cluster.session import Session
from workbench.core.live.collective_row import read_live
from workbench.diagnosis import stalls
from workbench.diagnosis.causes import Cause
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.errors import CellTimeoutError, ClusterError, ConfigError, RunError
from workbench.run.api import Run

MODEL = "import torch\nfrom torch.nn.parallel import DistributedDataParallel as Parallel\nx = torch.ones(3)\n"
LATE = (
    "model = Parallel(torch.nn.Linear(3, 3))\nloss = model(x).sum()\n"
    "if rank == 0:\n    input_of.read()\nloss.backward()"
)
DIFFERENT = (
    "operators, name = torch.ops._c10d_functional, torch.distributed.group.WORLD.group_name\n"
    "operators.wait_tensor(operators.all_reduce(x, 'sum', name) if rank else "
    "operators.all_gather_into_tensor(x, 2, name)).tolist()"
)


def verdict_of(cause: Cause, words: str = "") -> Diagnosis:
    """The verdict, once the ranks are where the test wants them."""

    def found() -> Diagnosis | None:
        diagnosis = workbench.why()
        return diagnosis if diagnosis.cause == cause and diagnosis.waiting and words in diagnosis.sentence else None

    return until(found)


def test_collectives_that_only_torch_recorded(two_ranks: Session) -> None:
    two_ranks.execute(f"{MODEL}import os\nreader, writer = os.pipe()\ninput_of = os.fdopen(reader)").raise_on_error()
    late = two_ranks.submit(LATE)
    found = verdict_of(Cause.USER_CODE, "it is at line 4 of the cell: input_of.read()")
    assert (found.missing, found.waiting) == ((0,), (1,))
    assert found.sentence.startswith("rank 0 has not entered all_reduce no.") and "48 B" in found.sentence
    releases.interrupt(late, signal=two_ranks.interrupt, call=two_ranks.call)
    assert late.wait_until_finished(WAIT_S)

    two_ranks.execute(MODEL).raise_on_error()
    different = two_ranks.submit(DIFFERENT)
    found = verdict_of(Cause.MISMATCH)
    assert "in its place" in found.sentence and {"all_gather", "all_reduce"} <= set(found.sentence.split())
    releases.interrupt(different, signal=two_ranks.interrupt, call=two_ranks.call)
    assert different.wait_until_finished(WAIT_S)


def test_a_rank_that_gets_no_core(two_ranks: Session) -> None:
    two_ranks.execute(MODEL).raise_on_error()
    with throttled(two_ranks.pids[1]) as is_throttled:
        if not is_throttled:
            pytest.skip("no right to make a cgroup, which takes a rank's core away")
        late = two_ranks.submit("if rank:\n    while x.sum() > 0:\n        pass\ntorch.distributed.all_reduce(x)")
        found = verdict_of(Cause.STARVED, "rank 1 has not entered all_reduce no. ")
        assert re.search(r"it gets no core for \d+ % of the time", found.sentence) and "of the cell" in found.sentence
    releases.interrupt(late, signal=two_ranks.interrupt, call=two_ranks.call)
    assert late.wait_until_finished(WAIT_S)


def test_a_cell_that_stalls_says_so_below_itself(
    two_ranks: Session,
    shell: InteractiveShell,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(stalls, "FLOOR_S", 0.5)
    two_ranks.execute(MODEL).raise_on_error()
    said, gate = [""], tmp_path / "gate"

    def is_told() -> bool:
        said.append(capsys.readouterr().err)
        return "stalled: " in "".join(said)

    once(is_told, gate.touch)
    wait = f"import os, time\nif rank == 1:\n    while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    shell.run_cell(f"%%dist\n{wait}\ntorch.distributed.all_reduce(x)")
    told = "".join(said) + capsys.readouterr().err
    assert "stalled: rank 1 has not entered all_reduce no. " in told and "line 3 of the cell" in told


def test_a_cell_that_takes_too_long_is_interrupted_and_explained(
    two_ranks: Session, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_ranks.execute(MODEL).raise_on_error()
    wait = Session.wait

    def wait_once_rank_0_is_stuck(session: Session, submission: Submission, *arguments: Any, **how: Any) -> None:
        until(lambda: submission.finished_ranks() == [1] and is_waiting(session, 0))
        wait(session, submission, *arguments, **how)

    monkeypatch.setattr(Session, "wait", wait_once_rank_0_is_stuck)
    result = shell.run_cell("%%dist --timeout 1\nif rank == 0:\n    torch.distributed.all_reduce(x)")
    assert isinstance(result.error_in_exec, CellTimeoutError)
    told = str(result.error_in_exec)
    assert told.startswith("the cell was interrupted after 1 s (--timeout)")
    assert ": rank 1 has not entered all_reduce no. " in told and "of group world (12 B, line 2 of the cell: " in told
    assert "it has finished its cell; rank 0 has waited" in told
    monkeypatch.undo()
    until(lambda: not two_ranks.is_busy())
    refused = shell.run_cell("%%dist --timeout 0\n1")
    assert "--timeout must be above 0 seconds, not 0" in str(refused.error_in_exec)


def is_waiting(session: Session, rank: int) -> bool:
    live = read_live(session.directory, rank)
    return live is not None and live.waiting


def test_faults_are_refused_by_name(two_ranks: Session) -> None:
    with pytest.raises(ConfigError, match="'melt' is no fault: choose kill, stop"):
        fault(two_ranks, "melt", [0])
    with pytest.raises(ConfigError, match="--for must be above 0 seconds, not 0"):
        fault(two_ranks, "delay", [0], for_s=0)


def test_a_dropped_connection_ends_a_collective(two_ranks: Session) -> None:
    two_ranks.execute(MODEL).raise_on_error()
    waiting = two_ranks.submit("if rank == 0:\n    torch.distributed.all_reduce(x)")
    verdict_of(Cause.FINISHED)
    fault(two_ranks, "drop", [0])
    assert waiting.wait_until_finished(WAIT_S)
    assert "dropped by %dist_fault" in str(waiting.error(0))


def test_faults_of_a_training_are_told(
    two_ranks: Session, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank that is stopped and goes on, one that gives NaN, one that dies."""
    shell.run_line_magic("dist_train", "digits-vit -n 2 --steps 100000 --quiet --name halted")
    run = Run("halted")
    until(lambda: run.last_step > 3)
    shell.run_line_magic("dist_fault", "stop -t 1")
    assert capsys.readouterr().out == "rank 1 was stopped (SIGSTOP) until %dist_fault continue\n"
    stalled = until(lambda: events(run, "stalled"))[0]
    assert stalled["cause"] == "stopped" and stalled["missing"] == [1]
    assert f"is stopped by a signal (SIGSTOP, process {two_ranks.pids[1]})" in stalled["sentence"]
    found = run.why()
    assert found.cause == Cause.STOPPED and found.ranks[0].waits_for == (1,)
    assert shell.run_line_magic("dist_why", "halted").missing == (1,)
    capsys.readouterr()

    def told() -> str:
        assert main(["why", "halted"]) == 0
        return capsys.readouterr().out

    # rank 0 may take longer to answer than somebody is kept who asks
    until(lambda: "is stopped by a signal" in (text := told()) and "rank 0, the innermost call first:" in text)
    shell.run_line_magic("dist_fault", "continue -t 1")
    until(lambda: events(run, "moving"))

    shell.run_line_magic("dist_fault", "nan -t 0")
    until(lambda: "nonfinite" in set(run.events()["kind"]))
    shell.run_line_magic("dist_fault", "kill -t 1")
    with pytest.raises(RunError, match="rank 1: killed by signal 9"):
        run.wait(WAIT_S)
    found = run.why()
    assert found.cause == Cause.DEAD_PEER and found.missing == (1,)
    assert "failed at step" in found.sentence and "before that: rank 1 " in found.sentence
    with pytest.raises(ClusterError, match="rank 1 ended before"):
        fault(two_ranks, "stop", [1])
    shell.run_line_magic("dist_up", "-n 2")  # one rank is replaced: the next module finds both


def events(run: Run, name: str) -> list[Any]:
    found = run.events()
    return list(found[(found["kind"] == "rank") & (found["name"] == name)]["value"])

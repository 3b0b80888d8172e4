"""Ranks that hang are explained: in a cell, where only torch recorded the collective, and in a training."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

import workbench
from workbench.cli.main import main
from workbench.cluster import releases
from workbench.cluster.session import Session
from workbench.diagnosis import stalls
from workbench.diagnosis.causes import Cause
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.errors import CellTimeoutError, RunError
from workbench.run.api import Run

MODEL = "import torch\nfrom torch.nn.parallel import DistributedDataParallel as Parallel\nx = torch.ones(3)\n"
LATE = (
    "model = Parallel(torch.nn.Linear(3, 3))\nloss = model(x).sum()\n"
    "if rank == 0:\n    input_of.read()\nloss.backward()"
)
DIFFERENT = (
    "from torch.distributed import _functional_collectives as fc\n"
    "world = torch.distributed.group.WORLD\n"
    "(fc.all_reduce(x, 'sum', world) if rank else fc.all_gather_tensor(x, 0, world)).tolist()"
)


def until(found: Callable[[], Any]) -> Any:
    """What ``found`` returns, once it is something."""
    deadline = time.monotonic() + 120
    while not (value := found()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert value
    return value


def verdict_of(cause: Cause) -> Diagnosis:
    """The verdict, once the ranks are where the test wants them."""

    def found() -> Diagnosis | None:
        diagnosis = workbench.why()
        return diagnosis if diagnosis.cause == cause and diagnosis.waiting else None

    return until(found)


def test_collectives_that_only_torch_recorded(two_ranks: Session) -> None:
    two_ranks.execute(f"{MODEL}import os\nreader, writer = os.pipe()\ninput_of = os.fdopen(reader)").raise_on_error()
    late = two_ranks.submit(LATE)
    found = verdict_of(Cause.USER_CODE)
    assert (found.missing, found.waiting) == ((0,), (1,)) and "line 4 of the cell" in found.sentence
    assert found.sentence.startswith("rank 0 has not entered all_reduce no.") and "48 B" in found.sentence
    releases.interrupt(late, signal=two_ranks.interrupt, call=two_ranks._call)
    assert late.wait_until_finished(60)

    two_ranks.execute(MODEL).raise_on_error()
    different = two_ranks.submit(DIFFERENT)
    found = verdict_of(Cause.MISMATCH)
    assert "in its place" in found.sentence and {"all_gather", "all_reduce"} <= set(found.sentence.split())
    releases.interrupt(different, signal=two_ranks.interrupt, call=two_ranks._call)
    assert different.wait_until_finished(60)


def test_a_cell_that_stalls_says_so_below_itself(
    two_ranks: Session, shell: InteractiveShell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "FLOOR_S", 0.5)
    two_ranks.execute(MODEL).raise_on_error()
    shell.run_cell("%%dist\nimport time\nif rank == 1:\n    time.sleep(4)\ntorch.distributed.all_reduce(x)")
    told = capsys.readouterr().err
    assert "stalled: rank 1 has not entered all_reduce no. " in told and "line 3 of the cell" in told


def test_a_cell_that_takes_too_long_is_interrupted_and_explained(two_ranks: Session, shell: InteractiveShell) -> None:
    two_ranks.execute(MODEL).raise_on_error()
    result = shell.run_cell("%%dist --timeout 1\nif rank == 0:\n    torch.distributed.all_reduce(x)")
    assert isinstance(result.error_in_exec, CellTimeoutError)
    told = str(result.error_in_exec)
    assert told.startswith("the cell was interrupted after 1 s (--timeout)")
    assert ": rank 1 has not entered all_reduce no. " in told and "of group world (12 B, line 2 of the cell: " in told
    assert "it has finished its cell; rank 0 has waited" in told
    until(lambda: not two_ranks.is_busy())
    refused = shell.run_cell("%%dist --timeout 0\n1")
    assert "--timeout 0 is no time" in str(refused.error_in_exec)


def test_a_stopped_rank_of_a_training_is_told_and_goes_on(
    two_ranks: Session, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("dist_train", "digits-vit -n 2 --steps 100000 --quiet --name halted")
    run = Run("halted")
    until(lambda: run.last_step > 3)
    pid = two_ranks.pids[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        stalled = until(lambda: events(run, "stalled"))[0]
        assert stalled["cause"] == "stopped" and stalled["missing"] == [1]
        assert f"is stopped by a signal (SIGSTOP, process {pid})" in stalled["sentence"]
        found = run.why()
        assert found.cause == Cause.STOPPED and found.ranks[0].waits_for == (1,)
        assert shell.run_line_magic("dist_why", "halted").missing == (1,)
        capsys.readouterr()
        assert main(["why", "halted"]) == 0
        told = capsys.readouterr().out
        assert "is stopped by a signal" in told and "rank 0, the innermost call first:" in told
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: events(run, "moving"))
    run.stop("no-checkpoint")
    run.wait(120)
    with pytest.raises(RunError, match="has ended"):
        run.why()


def events(run: Run, name: str) -> list[Any]:
    found = run.events()
    return list(found[(found["kind"] == "rank") & (found["name"] == name)]["value"])

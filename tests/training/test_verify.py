"""``%dist_verify`` as a user types it, ``run.verify()`` and ``workbench verify``, on two real ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import workbench
from tests.training.test_dist_train import CELL, SLOW, train
from tests.waiting import once, until
from workbench.cluster.session import Session
from workbench.core import run_files
from workbench.errors import ConfigError, RunDirectoryError, RunError
from workbench.report import render
from workbench.run.api import Run

#: the gradient of one layer is halved under a plan
HALVED = CELL + "if world_size > 1:\n    model[2].weight.register_hook(lambda gradient: gradient / 2)\n"


def verify(shell: InteractiveShell, line: str, cell: str | None = None) -> workbench.Verification:
    if cell is None:
        return shell.run_line_magic("dist_verify", line)
    return shell.run_cell_magic("dist_verify", line, cell)


def _files(run: Path) -> set[str]:
    return {path.relative_to(run).parts[0] for path in run.iterdir()}


def test_a_cell_is_verified_and_the_run_keeps_it(shell: InteractiveShell, two_ranks: Session, runs: Path) -> None:
    found = verify(shell, "-n 2 --plugin zero1 --steps 3 --batch-size 8 --name checked", CELL)
    assert found.same and found.steps == 3 and found.plan == Run("checked").plan.describe()
    run = Run("checked")
    assert run.status == "finished" and str(run.verification()) == str(found)
    assert not _files(run.path) & {"verify", "recording", "checkpoints"}
    assert all(run_files.known(str(path.relative_to(run.path))) for path in run.path.rglob("*") if path.is_file())
    page = render(run.path, runs / "checked.html", figures=[]).read_text()
    assert (
        found.sentence in page and "figures" not in page.partition("Comparison with training in one process")[2][:2000]
    )


def test_a_gradient_that_the_cell_halves_on_ranks_is_named(shell: InteractiveShell, two_ranks: Session) -> None:
    found = verify(shell, "-n 2 --steps 2 --batch-size 8", HALVED)
    assert not found.same and found.first_step == 1
    assert [each.name for each in found.ranked("gradient")] == ["2.weight"]
    assert found.causes == ["the gradient of 2.weight is 0.5 times the reference: averaged twice over dp (2 replicas)"]


def test_a_run_is_verified_afterwards(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, "-n 2 --steps 5 --batch-size 8 --quiet --name later", CELL).wait(timeout=300)
    with pytest.raises(RunDirectoryError, match=r"run\.verify\(\)"):
        run.verification()
    before, told = _files(run.path), []
    found = run.verify(steps=2, against="ddp", progress=lambda *how: told.append(how))
    assert found.same and found.reference == "torch's DistributedDataParallel on 2 ranks"
    assert told[-1] == ("rounding errors", 6, 6) and [how[1] for how in told] == sorted(how[1] for how in told)
    assert _files(run.path) - before == {"verification.json"}
    assert run.last_step == 5 and run.verification().steps == 2


def test_what_cannot_be_verified_leaves_nothing(shell: InteractiveShell, two_ranks: Session, runs: Path) -> None:
    before = set(runs.iterdir())
    with pytest.raises(ConfigError, match="use single or ddp"):
        workbench.verify({"recipe": "stdlib-llama"}, against="one")
    with pytest.raises(RunError, match="ZeroDivisionError"):
        verify(shell, "-n 2 --steps 2", CELL + "1 / 0\n")
    with pytest.raises(RunError, match="cannot split a Sequential"):
        verify(shell, "-n 2 --tp 2 --steps 2", CELL)
    assert set(runs.iterdir()) == before


def test_ctrl_c_ends_it_and_leaves_nothing(shell: InteractiveShell, two_ranks: Session, runs: Path) -> None:
    before = set(runs.iterdir())

    def has_begun() -> bool:
        return any(any(path.glob("rank-*/steps.arrow")) for path in set(runs.iterdir()) - before)

    once(has_begun, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert verify(shell, "-n 2 --steps 2000 --batch-size 8", SLOW) is None
    assert set(runs.iterdir()) == before
    until(lambda: not two_ranks.is_busy())  # a busy machine takes longer than a person is kept
    assert verify(shell, "-n 2 --steps 2 --batch-size 8", CELL).same, "the ranks are as before"


def test_the_command_line_answers_with_its_exit_code(
    shell: InteractiveShell, two_ranks: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from workbench.cli.main import main

    (tmp_path / "spec.toml").write_text("batch_size = 8\n[plan]\nranks = 2\nplugin = 'ddp'\n")
    (tmp_path / "cell.py").write_text(HALVED)
    assert main(["verify", str(tmp_path / "spec.toml"), "--steps", "2"]) == 1
    shown = capsys.readouterr().out
    assert "does not train the same as one process: at step 1" in shown and "2.weight" in shown

"""``breakpoint()`` in the loss of a training: one rank stops, the others wait, and the losses stay the same."""

from __future__ import annotations

import builtins

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import train
from tests.waiting import WAIT_S, until
from workbench.cli.main import main
from workbench.cluster.debugger import dialogue
from workbench.cluster.debugger.dialogue import in_debugger
from workbench.cluster.session import Session
from workbench.diagnosis import view
from workbench.diagnosis.causes import Cause
from workbench.events.decode import of_kind
from workbench.events.words import words
from workbench.run import debug as run_debug
from workbench.run.run import Run

CELL = """
import os, torch
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
features = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
dataset = torch.utils.data.TensorDataset(features, features.sum(1, keepdim=True))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def loss_fn(model, batch):
    error = model(batch[0]) - batch[1]
    STOP
    return (error ** 2).mean()
"""
FLAGS = "-n 2 --steps 6 --batch-size 8 --quiet --eval-every 0"
FAILS = "assert int(os.environ['RANK']) == 0, error.shape"


def told(run: Run) -> list[str]:
    return [words(each.kind, each.name, each.value) for each in of_kind(run.event_rows(), "rank")]


def test_a_training_stops_in_the_debugger_and_goes_on_to_the_same_losses(
    shell: InteractiveShell,
    two_ranks: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(view, "_ANSWER_S", WAIT_S)
    undisturbed = train(shell, FLAGS, CELL.replace("STOP", "pass")).wait(timeout=300)
    run = train(shell, FLAGS, CELL.replace("STOP", "if os.environ['RANK'] == '1': breakpoint()"))
    until(lambda: in_debugger(two_ranks.directory, [0, 1]))
    until(lambda: run.why().waiting)
    found = run.why()
    assert (found.cause, found.missing, found.waiting) == (Cause.DEBUGGER, (1,), (0,))
    assert found.sentence.startswith("rank 1 is in the debugger, line 8 of the cell in loss_fn: ")
    assert "; rank 0 waits in all_reduce" in found.sentence
    until(lambda: told(run))
    assert told(run)[0].startswith("rank 1 is in the debugger, line 8 of the cell in loss_fn")
    typed = ["p error.shape", "w", "n", "c"]

    def ask(prompt: str) -> str:
        line = typed.pop(0)
        if line == "^C":
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr(builtins, "input", ask)
    capsys.readouterr()
    monkeypatch.setattr(run_debug, "_GONE_S", 0.02)
    monkeypatch.setattr(dialogue, "_ANSWER_S", WAIT_S)
    assert two_ranks.status()[1].state == "in the debugger"
    shell.run_line_magic("dist_debug", "-t 1")
    assert not typed
    typed += ["c", "^C"]
    run.wait(timeout=300)  # asks as well; then further breakpoints are passed over
    shown = capsys.readouterr().out
    assert "torch.Size([4, 1])" in shown and "-> return (error ** 2).mean()" in shown and not typed
    assert "trainer.py" not in shown
    assert run.metrics()["loss"].tolist() == undisturbed.metrics()["loss"].tolist()
    until(lambda: told(run)[-1].startswith("the ranks go on"))
    assert main(["debug", run.name]) == 1
    assert "ranks 0-1 are not in the debugger" in capsys.readouterr().err


def test_post_mortem_of_a_training(
    shell: InteractiveShell, two_ranks: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dialogue, "_ANSWER_S", WAIT_S)
    run = train(shell, FLAGS, CELL.replace("STOP", FAILS))
    until(run.ended)
    assert run.status == "failed"
    typed = ["@1 p error.shape", "@all", "c"]
    monkeypatch.setattr(builtins, "input", lambda prompt: typed.pop(0))
    capsys.readouterr()
    shell.run_line_magic("dist_debug", "-t 1")
    shown = capsys.readouterr().out
    assert f"> line 8 of the cell, loss_fn()\n-> {FAILS}" in shown and "torch.Size([4, 1])" in shown

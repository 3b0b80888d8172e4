"""The files of ``notebooks/extending``, as the cells that they are, each against a value that it did not compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.environments import interpreter
from tests.training.bare_torch import CELL
from workbench import Run
from workbench.cli.machine import notebooks
from workbench.cluster.session import Session
from workbench.core import algorithms

FOLDER = notebooks.folder() / "extending"


def cell(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def one_process(text: str, steps: int, size: int) -> list[float]:
    """Losses of a plain loop over what a training cell defines."""
    names: dict[str, Any] = {}
    exec(compile(text, "<cell>", "exec"), names)
    losses = []
    for step in range(steps):
        samples = [names["dataset"][(size * step + n) % len(names["dataset"])] for n in range(size)]
        inputs, target = (torch.stack(part) for part in zip(*samples, strict=True))
        loss = names["criterion"](names["model"](inputs), target)
        names["optimizer"].zero_grad()
        loss.backward()
        names["optimizer"].step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_each_file_is_short(path: Any) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_bytes_are_counted_and_a_run_that_goes_on_counts_on(shell, monkeypatch) -> None:
    """A linear layer of 4 x 2 has 10 parameters, 40 bytes a step."""
    monkeypatch.setattr(algorithms, "_defined", {})
    shell.run_cell_magic("dist_algorithm", "counted", cell("count_bytes.py"))
    flags = "-n 2 --framework torch --algorithm counted --steps 3 --batch-size 4 --wait --quiet"
    shell.run_cell_magic("dist_train", f"{flags} --name counted", CELL)
    run = Run("counted")
    assert list(run.metrics()["loss"]) == pytest.approx(one_process(CELL, 3, 4), rel=1e-5)
    told = [line for line in run.output().splitlines() if "bytes" in line]
    assert told == [f"{40 * step} bytes of gradients before step {step + 1}" for step in (0, 1, 2)]
    shell.run_line_magic("dist_train", f"--resume {run.path} --steps 5 --name counted-on --wait --quiet")
    told = [line for line in Run("counted-on").output().splitlines() if "bytes" in line]
    assert told == [f"{40 * step} bytes of gradients before step {step + 1}" for step in (3, 4)]


def test_a_layout_of_a_module_of_ones_own_trains_as_one_process(shell) -> None:
    text = cell("tensor_plan.py")
    flags = "-n 2 --framework torch --plugin fsdp --tp 2 --steps 20 --batch-size 8 --name layout --wait --quiet"
    shell.run_cell_magic("dist_train", flags, text)
    run = Run("layout")
    assert run.plan.tp == 2
    assert list(run.metrics()["loss"]) == pytest.approx(one_process(text, 20, 8), abs=1e-5)


def test_a_policy_of_ones_own_cuts_a_module_as_one_process_computes_it(shell) -> None:
    session = Session.up(2, framework="colossal", devices="cpu")
    session.execute(cell("colossal_policy.py")).raise_on_error()
    session.execute("features = [layer.weight.shape for layer in (model[0].gate, model[0].down)]").raise_on_error()
    torch.manual_seed(0)
    inputs = torch.randn(32, 16)
    layers = [torch.nn.ModuleList(map(torch.nn.Linear, (16, 16, 64), (64, 64, 16))) for _ in range(2)]
    optimizer = torch.optim.SGD([each for layer in layers for each in layer.parameters()], lr=0.5)
    losses = []
    for _ in range(10):
        x = inputs
        for gate, up, down in layers:
            x = x + down(gate(x).sigmoid() * up(x))
        loss = (x - inputs.roll(1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for rank, found in session.pull("losses").items():
        assert found == pytest.approx(losses, rel=1e-5), rank
    assert session.pull("features") == {rank: [torch.Size([32, 16]), torch.Size([16, 32])] for rank in (0, 1)}


def test_an_optimizer_of_ones_own_steps_in_deepspeeds_engine(shell) -> None:
    interpreter("deepspeed")
    text = cell("deepspeed_optimizer.py")
    flags = "-n 2 --framework deepspeed --plugin zero1 --steps 20 --batch-size 8 --name lion --wait --quiet"
    shell.run_cell_magic("dist_train", flags, text)
    assert list(Run("lion").metrics()["loss"]) == pytest.approx(one_process(text, 20, 8), rel=1e-5)

"""``%%dist_algorithm``: a run with an algorithm of one's own, and runs that go on from it."""

from __future__ import annotations

import pytest
import torch

from tests.training.bare_torch import CELL
from workbench import Run, train
from workbench.core import algorithms
from workbench.errors import RunError

#: each rank sends every other element, in turn: with error feedback all are sent in two steps
SOURCE = """
class Every2nd(Compressor):
    summed = True

    def encode(self, gradient, draws):
        return (gradient[draws.step % 2 :: 2].contiguous(),)

    def decode(self, code, length, draws):
        places = torch.arange(length)[draws.step % 2 :: 2]
        return code[0].new_zeros(length).index_copy_(0, places, code[0])
"""


@pytest.fixture(scope="module")
def run(shell):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "_defined", {})
        yield _trained(shell)


def _trained(shell):
    shell.run_cell_magic("dist_algorithm", "every-2nd", SOURCE)
    flags = "-n 2 --framework torch --algorithm every-2nd+ef --steps 6 --save-every 3 --batch-size 4 --name own --wait"
    shell.run_cell_magic("dist_train", flags, CELL)
    return Run("own")


def expected(steps):
    """Losses of one process: the means over ranks of what is sent and left over are those of the whole batch."""
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 2)
    left_over = [torch.zeros_like(parameter) for parameter in model.parameters()]
    losses = []
    for step in range(steps):
        inputs = torch.stack([torch.ones(4) * (n % 16) / 16 for n in range(4 * step, 4 * step + 4)])
        loss = model(inputs).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        losses.append(loss.item())
        with torch.no_grad():
            for parameter, gradient, rest in zip(model.parameters(), gradients, left_over, strict=True):
                whole = gradient + rest
                sent = torch.zeros(whole.numel())
                sent[step % 2 :: 2] = whole.flatten()[step % 2 :: 2]
                rest.copy_(whole - sent.view(whole.shape))
                parameter.sub_(0.1 * sent.view(whole.shape))
    return losses


def test_it_trains_as_one_process_and_the_run_keeps_its_source(run):
    assert run.status == "finished"
    assert run.plan.describe() == "torch ddp2:every-2nd+ef"
    assert (run.path / "algorithm.py").read_text() == SOURCE
    assert list(run.metrics()["loss"]) == pytest.approx(expected(6), rel=1e-5)


def test_a_process_that_has_not_defined_it_goes_on_with_the_same_losses(run, monkeypatch):
    monkeypatch.setattr(algorithms, "_defined", {})
    resumed = train({"resume": f"{run.path}@3", "name": "resumed"})
    resumed.wait()
    assert resumed.plan.describe() == run.plan.describe()
    assert list(resumed.metrics()["loss"]) == list(run.metrics()["loss"])[3:]
    assert (resumed.path / "algorithm.py").read_text() == SOURCE


def test_one_that_cannot_work_is_refused_before_the_first_step(shell, run):
    source = SOURCE.replace("[draws.step % 2 :: 2].contiguous()", "[gradient != 0]")
    shell.run_cell_magic("dist_algorithm", "varying", source)
    flags = "-n 2 --framework torch --algorithm varying --steps 6 --batch-size 4 --name wrong --wait"
    with pytest.raises(RunError, match=r"failed at step 0 .* ranks would wait for each other"):
        shell.run_cell_magic("dist_train", flags, CELL)

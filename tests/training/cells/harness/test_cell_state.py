"""What a cell keeps beside its model goes on in a resumed run, and torch settings of one run do not reach the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.trained import RANKS
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.events.outcome import failure_of
from workbench.run.reader import RunReader
from workbench.run.resolve import resolve
from workbench.rundir import directory as run_directory
from workbench.rundir import environment

MODEL = """
import torch
torch.manual_seed(3)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(64, 4)
dataset = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
"""
#: an averaged teacher, a queue that is bound anew, a statistic changed in place, an object with state_dict
BESIDE = (
    MODEL
    + """
import copy
teacher = copy.deepcopy(model).requires_grad_(False)
queue = torch.zeros(0, 1)
mean = torch.zeros(1)
names, limits = {"a": 1}, {"a": 1}
class Counter:
    value = 0
    def state_dict(self):
        return {"value": self.value}
    def load_state_dict(self, state):
        self.value = state["value"]
counter = Counter()
def loss_fn(model, batch):
    global queue
    inputs, targets = batch
    outputs = model(inputs)
    with torch.no_grad():
        for own, student in zip(teacher.parameters(), model.parameters()):
            own.lerp_(student, 0.3)
        queue = torch.cat([queue, outputs.detach().mean(0, keepdim=True)])[-3:]
        mean.mul_(0.5).add_(0.5 * inputs.mean())
        counter.value += 1
        names[counter.value] = 1
    history = queue.mean() + mean + counter.value / 10
    return ((outputs - targets - history) ** 2).mean() + ((outputs - teacher(inputs)) ** 2).mean()
"""
)


@pytest.fixture
def train(pool: RankPool) -> Any:
    def trained(cell: str, **options: Any) -> tuple[RunReader, np.ndarray, str]:
        """The run, its losses, and the texts of its events."""
        options = {"batch_size": 4, "eval_every": 0, "framework": "torch", "ranks": 2, **options}
        options = {"plugin": "ddp", "final_checkpoint": False, **options}
        request = resolve(options, cell=cell, default_ranks=2)
        path = run_directory.create(request.spec, request.cell)
        ranks = request.spec.plan.ranks
        pool.run(ranks, f"{RANKS}:train", kept_for="cells", run=str(path))
        run = RunReader(path)
        run.store.refresh()
        events = run.store.table("events")
        assert failure_of(events) is None
        said = "\n".join(
            f"{e.name} {e.value}" for k in (EventKind.WARNING, EventKind.CHECKPOINT) for e in of_kind(events, k)
        )
        return run, np.asarray(run.metrics()["loss"]), said

    return trained


def test_state_beside_the_model_goes_on(train: Any) -> None:
    whole, losses, said = train(BESIDE, steps=6, save_every=3)
    assert "checkpoints do not hold the cell's variables names:" in said
    _, again, _ = train(BESIDE, steps=6, resume=f"{whole.path}@3")
    np.testing.assert_array_equal(again, losses[3:])


def test_another_number_of_ranks_takes_the_state_of_rank_0(train: Any) -> None:
    first, _, _ = train(BESIDE, steps=3, save_every=3)
    _, _, said = train(BESIDE, steps=4, resume=f"{first.path}@3", ranks=1)
    assert "are those of rank 0: the checkpoint is of 2 ranks" in said


def test_state_names_what_is_kept(train: Any) -> None:
    chosen = BESIDE + 'state = ["names", "teacher"]\n'
    first, losses, said = train(chosen, steps=4, save_every=2)
    assert "do not hold" not in said
    _, again, _ = train(chosen, steps=4, resume=f"{first.path}@2")
    assert abs(again[0] - losses[2]) > 1e-3, "the queue was left out"


def test_settings_of_a_run_do_not_reach_the_next(train: Any) -> None:
    cell = MODEL + "criterion = torch.nn.MSELoss()\n"
    _, before, _ = train(cell, steps=3)
    changed, double, _ = train("import torch\ntorch.set_default_dtype(torch.float64)\n" + cell, steps=3)
    assert environment.read(changed.path)["torch_settings"] == {
        "default dtype": "torch.float64 (default: torch.float32)"
    }
    _, after, said = train(cell, steps=3)
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(before, double)
    assert "torch_settings" not in said


def test_lr_scales_parameter_groups(train: Any) -> None:
    cell = MODEL + "criterion = torch.nn.MSELoss()\n"
    groups = 'optimizer = torch.optim.SGD([{"params": [model.weight], "lr": %s}, {"params": [model.bias], "lr": %s}])\n'
    _, scaled, said = train(cell + groups % (0.001, 0.1), steps=3, lr=0.01)
    _, right, _ = train(cell + groups % (0.01, 1.0), steps=3)
    np.testing.assert_allclose(scaled, right, rtol=1e-6)
    assert "the others keep their ratio" in said


def test_another_batch_size_resumes_at_the_same_sample(train: Any) -> None:
    """The loss is the mean of the batch's sample numbers."""
    cell = (
        MODEL
        + "dataset = [torch.tensor(float(i)) for i in range(64)]\n"
        + "def loss_fn(model, batch):\n    return batch.mean() + 0 * model.weight.sum() + 0 * model.bias.sum()\n"
    )
    first, _, _ = train(cell, steps=4, save_every=4)
    _, again, _ = train(cell, steps=6, resume=f"{first.path}@4", batch_size=8)
    np.testing.assert_allclose(again, [np.arange(16, 24).mean(), np.arange(24, 32).mean()])

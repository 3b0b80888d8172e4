"""A poisoned sample stops a run, is named, and the step is replayed in a new session."""

from __future__ import annotations

import json

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import CELL, train
from workbench.cluster.session import Session
from workbench.errors import RunDirectoryError
from workbench.run.api import Run

#: one sample makes the argument of a logarithm negative; dropout, so that the random state matters
POISONED = """
import torch
class Log(torch.nn.Module):
    def forward(self, values):
        return torch.log(values.sum(1, keepdim=True) + 100.0) + torch.tanh(values)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), Log(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
torch.nn.init.constant_(model[0].weight, 0.05)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
x = torch.randn(64, 8)
x[37] = -50.0
dataset = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
criterion = torch.nn.MSELoss()
"""

#: one sample makes a module send infinite gradients back
BACKWARD = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
class Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()
    @staticmethod
    def backward(ctx, gradient):
        return gradient / 0
class Act(torch.nn.SiLU):
    armed = False
    def forward(self, values):
        return super().forward(Overflow.apply(values) if Act.armed else values)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4, max_position_embeddings=32))
model.model.layers[1].mlp.act_fn = Act()
def look(module, args, kwargs):
    Act.armed = bool((kwargs["input_ids"] == 63).any())
model.register_forward_pre_hook(look, with_kwargs=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
ids = torch.arange(32 * 8).reshape(32, 8) % 60
ids[9, 2] = 63
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
"""
SPLIT = {"tp": "--plugin hybrid --tp 2", "pp": "--plugin hybrid --pp 2 --micro-batches 2"}


@pytest.fixture(scope="module")
def stopped(shell: InteractiveShell) -> Run:
    """Sample 37 is in the third batch of 16: the sixth of rank 0's eight."""
    return train(shell, "-n 2 --steps 10 --batch-size 16 --quiet --name poisoned", POISONED).wait(timeout=300)


@pytest.fixture(scope="module")
def others(shell: InteractiveShell, stopped: Run) -> dict[str, Run]:
    """The same under zero1, where rank 1 has the sample; and backward faults of a model that two ranks share."""
    lines = {"zero1": ("--plugin zero1 --batch-size 16", POISONED.replace("x[37]", "x[45]"))}
    lines |= {name: (f"{plan} --batch-size 4", BACKWARD) for name, plan in SPLIT.items()}
    return {
        name: train(shell, f"-n 2 --steps 5 --quiet {line}", cell).wait(timeout=300)
        for name, (line, cell) in lines.items()
    }


def test_the_run_is_stopped_and_says_where(stopped: Run) -> None:
    assert (stopped.status, stopped.last_step) == ("stopped", 3)
    events = stopped.events()
    (fault,) = events[events["kind"] == "nonfinite"].to_dict("records")
    value = fault["value"]
    assert (fault["name"], fault["step"], fault["rank"]) == ("loss", 3, 0)
    assert (value["layer"], value["module"], value["where"]) == ("1", "Log", "forward")
    assert value["inputs"][0]["shape"] == [8, 16] and value["inputs"][0]["nonfinite_count"] == 0
    assert value["inputs"][0]["min"] < -15
    assert stopped.metrics()["skipped"].tolist() == [False, False, True]


def test_what_was_not_kept_is_said(shell: InteractiveShell, stopped: Run) -> None:
    with pytest.raises(RunDirectoryError, match="there are step 3 on rank-00000"):
        stopped.replay(4, 0)
    file = stopped.path / "rank-00000/nonfinite-step-000003/fault.json"
    about = file.read_text()
    file.write_text(json.dumps({**json.loads(about), "weights": "9 MiB of weights are more than half of the disk"}))
    with pytest.raises(RunDirectoryError, match="cannot be replayed: 9 MiB"):
        stopped.replay(3, 0)
    file.write_text(about)
    fine = train(shell, "-n 1 --steps 2 --quiet", CELL).wait(timeout=300)
    with pytest.raises(RunDirectoryError, match="has no step"):
        fine.replay()


def test_replayed_in_a_new_session_the_loss_is_equal_in_every_bit(
    shell: InteractiveShell, stopped: Run, others: dict[str, Run]
) -> None:
    assert {run.last_step for run in others.values()} == {3}
    shell.run_line_magic("dist_down", "")
    for name, rank in (("tp", 0), ("pp", 1)):
        found = shell.run_line_magic("dist_replay", f"{others[name].path} --step 3 --rank {rank}")
        assert (found.layer, found.module, found.where) == ("model.layers.1.mlp.act_fn", "Act", "backward"), name
        assert found.bit_equal and np.isfinite(found.loss), "the forward pass was sound"
        assert found.culprit == rank, name
    assert Session.current().n == 2, "the ranks of a replica"
    same = str(others["pp"].replay(3, 0))
    assert same.splitlines()[1:-1] == str(found).splitlines()[1:-1], "a replica has one answer"

    found = shell.run_line_magic("dist_replay", f"{stopped.path} --step 3 --rank 0")
    assert found.bit_equal and np.isnan(found.loss) and np.isnan(found.logged_loss)
    assert (found.step, found.rank, found.layer, found.module, found.where) == (3, 0, "1", "Log", "forward")
    assert "Log" in str(found) and "equal in every bit" in str(found)
    fault = stopped.events().query("kind == 'nonfinite'")["value"].iloc[0]
    assert found.inputs == fault["inputs"] and found.output == fault["output"]
    assert str(stopped.replay()) == str(found), "the first kept step, where it began"
    sharded = others["zero1"].replay()
    assert (sharded.rank, sharded.culprit, sharded.layer, sharded.bit_equal) == (1, 1, "1", True)
    shell.run_line_magic("dist_down", "")

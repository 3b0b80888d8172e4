"""``log`` in a cell that real ranks train: the numbers of one process, whatever the plan."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import train
from tests.waiting import until
from workbench.cluster.session import Session

CELL = """
import torch
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
log("top", 3)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
    def block(self, x):
        log("first input", x.detach().sum(), reduce="sum")
        return self.first(x).tanh()
    def forward(self, x):
        return self.last(checkpoint(self.block, x, use_reentrant=False))

model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.arange(128.0).view(32, 4) / 128
dataset = torch.utils.data.TensorDataset(x[:24], x[:24].sum(1, keepdim=True))
eval_dataset = torch.utils.data.TensorDataset(x[24:], x[24:].sum(1, keepdim=True))

def loss_fn(model, batch):
    x, y = batch
    log("mean", x.mean())
    log("largest", x.max(), reduce="max")
    log("smallest", x.min(), reduce="min")
    log("own", x.mean(), reduce=None)
    log("loss", 2 * len(x), "sum")
    if rank == world_size - 1:
        log("last only", rank)
    log("broken", "text")
    if model.training:
        log.image("batch", x)
        log.text("said", f"{len(x)} samples")
    return torch.nn.functional.mse_loss(model(x), y)
"""
LLAMA = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=2, max_position_embeddings=16)
model = LlamaForCausalLM(config)
for number, layer in enumerate(model.model.layers):
    layer.register_forward_hook(lambda module, inputs, outputs, n=number: log(
        f"layer {n}", (outputs[0] if isinstance(outputs, tuple) else outputs).detach().square().mean()))
    layer.register_forward_hook(lambda module, inputs, outputs: log("calls", 1, "sum"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = [{"input_ids": (ids := (torch.arange(8) * 7 + n) % 32), "labels": ids} for n in range(16)]
criterion = lambda outputs, batch: outputs.loss
"""
X = np.arange(128.0).reshape(32, 4) / 128


@pytest.mark.parametrize("plan", ["--plugin ddp --accumulate 2", "--framework torch", "--plugin zero2"])
def test_values_are_those_of_one_process(shell: InteractiveShell, two_ranks: Session, plan: str) -> None:
    line = f"-n 2 --batch-size 8 --steps 3 --eval-every 3 --quiet {plan}"
    run = train(shell, line, CELL).wait(timeout=300)
    assert run.status == "finished"
    metrics, batches = run.metrics(), [X[start : start + 8] for start in (0, 8, 16)]
    for name, expected in {
        "first input": [batch.sum() for batch in batches],
        "mean": [batch.mean() for batch in batches],
        "largest": [batch.max() for batch in batches],
        "smallest": [batch.min() for batch in batches],
        "log/loss": [16.0] * 3,
        "last only": [1.0] * 3,
        "own/rank 0": [batch[:4].mean() for batch in batches],
        "own/rank 1": [batch[4:].mean() for batch in batches],
        "eval/first input": [math.nan, math.nan, X[24:].sum()],
        "eval/mean": [math.nan, math.nan, X[24:].mean()],
    }.items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-6, err_msg=name)
    per_rank = run.metrics(per_rank=True)
    assert per_rank[per_rank["step"] == 1]["log/loss"].tolist() == [16.0, 8.0, 8.0]
    values = run.values()
    assert values[values["name"] == "top"][["step", "value"]].values.tolist() == [[0, 3.0]]
    told = run.events().query("name == 'log_broken'")
    assert sorted(told["rank"]) == [0, 1] and "a str is not a single real number" in told["value"].iloc[0]
    media = run.media()
    assert {(one.name, one.rank) for one in media} == {("batch", 0), ("said", 0)}
    assert all(one.file is None or one.file.exists() for one in media)


@pytest.mark.parametrize("plan", ["-n 2 --tp 2", "-n 2 --pp 2 --micro-batches 2"])
def test_values_under_tensor_and_pipeline_parallelism(shell: InteractiveShell, two_ranks: Session, plan: str) -> None:
    one = train(shell, "-n 1 --batch-size 4 --steps 2 --eval-every 0 --quiet", LLAMA).wait(timeout=300).metrics()
    run = train(shell, f"{plan} --batch-size 4 --steps 2 --eval-every 0 --quiet", LLAMA).wait(timeout=300)
    assert run.status == "finished", json.dumps(run.events()["value"].tolist(), default=str)[-2000:]
    split = run.metrics()
    assert one["calls"].tolist() == [2.0, 2.0] and split["calls"].tolist() == (
        [4.0, 4.0] if "pp" in plan else [2.0, 2.0]
    )
    for name in ("layer 0", "layer 1"):
        np.testing.assert_allclose(split[name], one[name], rtol=1e-4)


def test_a_rollback_takes_values_back(shell: InteractiveShell, two_ranks: Session, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"    calls.append(1)\n    while len(calls) == 20 and not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    held = CELL.replace("    x, y = batch\n", f"    x, y = batch\n{wait}")
    line = "-n 2 --framework torch --batch-size 8 --steps 60 --save-every 5 --eval-every 0 --quiet"
    run = train(shell, line, f"import os, time\ncalls = []\n{held}")
    until(lambda: run.last_step >= 12)
    run.rollback()
    gate.touch()
    run.wait(timeout=300)
    assert (run.events()["name"] == "restored").any()
    values = run.values()
    assert values[values["name"] == "mean"]["step"].tolist() == list(range(1, 61)), "each step once"
    last = values[values["name"] == "first input"]["value"]
    np.testing.assert_allclose(last, [X[start : start + 8].sum() for start in (0, 8, 16)] * 20, rtol=1e-5)

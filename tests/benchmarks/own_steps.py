"""What a ``train_step`` costs: the same training as loss_fn and as train_step, under torch's ddp.

``python -m tests.benchmarks.own_steps [--width 1024] [--steps 40] [--ranks 2]`` prints the median time of a step of
each and their ratio. Each is trained twice, in turn.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import numpy as np

import workbench
from workbench.cluster.session import Session

CELL = """
import torch
from torch import nn

model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear({width}, {width}), nn.ReLU())])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
inputs = torch.randn(64, {width})
dataset = torch.utils.data.TensorDataset(inputs, inputs)
"""
LOSS = "loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()\n"
STEP = """
def train_step(model, optimizer, batch):
    optimizer.zero_grad()
    loss = (model(batch[0]) - batch[1]).square().mean()
    loss.backward()
    optimizer.step()
    return loss
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    spec = {
        "ranks": options.ranks,
        "steps": options.steps,
        "batch_size": 32,
        "framework": "torch",
        "eval_every": 0,
        "final_checkpoint": False,
        "level": "off",
    }
    found: dict[str, list[float]] = {"loss_fn": [], "train_step": []}
    with tempfile.TemporaryDirectory() as home:
        os.environ["WORKBENCH_HOME"] = home
        for name, ending in [("loss_fn", LOSS), ("train_step", STEP)] * 2:
            cell = CELL.format(width=options.width) + ending
            run = workbench.train(spec, cell=cell)
            run.wait(timeout=600)
            found[name].append(float(np.median(run.metrics()["step_time_ms"][5:])))
    session = Session.current()
    if session is not None:
        session.down()
    best = {name: min(times) for name, times in found.items()}
    for name, times in found.items():
        print(f"{name:12} {' '.join(f'{time:8.1f}' for time in times)} ms")
    print(f"train_step / loss_fn: {best['train_step'] / best['loss_fn']:.2f}")


if __name__ == "__main__":
    main()

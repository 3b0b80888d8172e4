"""What a checkpoint that is written in the background costs training: the stall, and the steps while it is written.

``python -m tests.benchmarks.checkpoint [--width 2048] [--steps 60] [--every 10] [--ranks 2]`` trains a model of four
square layers with AdamW under ddp and prints, of the median step: the step after a checkpoint (goal: 1.1x), the time
between two steps in which the state is copied, and how long a checkpoint takes until it is on the disk.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import numpy as np

import workbench
from workbench.cluster.session import Session
from workbench.rundir import checkpoints
from workbench.telemetry.store import Store

CELL = """
import torch
from torch import nn

model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear({width}, {width}), nn.ReLU())])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
inputs = torch.randn(512, {width})
dataset = torch.utils.data.TensorDataset(inputs, inputs)
loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    spec = {
        "ranks": options.ranks,
        "steps": options.steps,
        "batch_size": 64,
        "framework": "torch",
        "eval_every": 0,
        "save_every": options.every,
        "keep": 2,
        "final_checkpoint": False,
        "level": "off",
    }
    with tempfile.TemporaryDirectory() as home:
        os.environ["WORKBENCH_HOME"] = home
        run = workbench.train(spec, cell=CELL.format(width=options.width))
        run.wait(timeout=1200)
        store = Store(run.path)
        store.refresh()
        steps, events = store.table("steps"), store.table("events")
        first = checkpoints.directory(run.path, checkpoints.steps(run.path)[0])
        size = sum(file.stat().st_size for file in first.iterdir())
    session = Session.current()
    if session is not None:
        session.down()
    own = steps["rank"] == 0
    step, end_s, took_ms = steps["step"][own], steps["time"][own], steps["step_time_ms"][own]
    between_ms = np.append(0.0, np.diff(end_s) * 1e3 - took_ms[1:])
    is_after = (step % options.every == 1) & (step > 1)
    others = (step > 5) & ~is_after & (step % options.every != 2)
    saved = (events["kind"] == "checkpoint") & (events["name"] == "saved")
    begun = {int(at): float(time) for at, time in zip(step, end_s, strict=True)}
    lasted = [time - begun[int(at)] for at, time in zip(events["step"][saved], events["time"][saved], strict=True)]
    usual = float(np.median(took_ms[others]))
    print(f"checkpoint of {size / 2**20:.0f} MiB, {int(saved.sum())} times; a step takes {usual:.0f} ms")
    print(f"the step after a checkpoint / another step: {np.median(took_ms[is_after]) / usual:.2f}x")
    print(
        f"between steps: {np.median(between_ms[is_after]):.0f} ms with a checkpoint, "
        f"{np.median(between_ms[others]):.0f} ms without"
    )
    print(f"until it is on the disk: {np.median(lasted):.2f} s")


if __name__ == "__main__":
    main()

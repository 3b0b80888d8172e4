"""What a checkpoint that is written in the background costs training: the stall, and the steps while it is written.

``python -m tests.benchmarks.checkpoint [--width 2048] [--steps 60] [--every 10] [--ranks 2]`` trains a model of four
square layers with AdamW under ddp and prints, of the median step: the step after a checkpoint (goal: 1.1x), the time
between two steps in which the state is copied, and how long a checkpoint takes until it is on the disk.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
        found = costs(run.path, options.every)
    session = Session.current()
    if session is not None:
        session.down()
    print(f"checkpoint of {found.bytes / 2**20:.0f} MiB, {found.count} times; a step takes {found.step_ms:.0f} ms")
    print(f"the step after a checkpoint / another step: {found.after_ms / found.step_ms:.2f}x")
    print(f"between steps: {found.stall_ms:.0f} ms with a checkpoint, {found.between_ms:.0f} ms without")
    print(f"until it is on the disk: {found.written_s:.2f} s")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Medians. ``step_ms``: of a step without a checkpoint nearby; ``after_ms``: of the one after a checkpoint;
    ``stall_ms``, ``between_ms``: between two steps, with and without a checkpoint; ``written_s``: until it is on the
    disk."""

    count: int
    bytes: int
    step_ms: float
    after_ms: float
    stall_ms: float
    between_ms: float
    written_s: float


def costs(path: Path, every: int) -> Costs:
    """What the checkpoints of a run cost that wrote one every so many steps."""
    store = Store(path)
    store.refresh()
    steps, events = store.table("steps"), store.table("events")
    first = checkpoints.directory(path, checkpoints.steps(path)[0])
    own = steps["rank"] == 0
    step, end_s, took_ms = steps["step"][own], steps["time"][own], steps["step_time_ms"][own]
    between_ms = np.append(0.0, np.diff(end_s) * 1e3 - took_ms[1:])
    is_after = (step % every == 1) & (step > 1)
    others = (step > 5) & ~is_after & (step % every != 2)
    saved = (events["kind"] == "checkpoint") & (events["name"] == "saved")
    begun = {int(at): float(time) for at, time in zip(step, end_s, strict=True)}
    lasted = [time - begun[int(at)] for at, time in zip(events["step"][saved], events["time"][saved], strict=True)]
    return Costs(
        count=int(saved.sum()),
        bytes=sum(file.stat().st_size for file in first.iterdir()),
        step_ms=float(np.median(took_ms[others])),
        after_ms=float(np.median(took_ms[is_after])),
        stall_ms=float(np.median(between_ms[is_after])),
        between_ms=float(np.median(between_ms[others])),
        written_s=float(np.median(lasted)),
    )


if __name__ == "__main__":
    main()

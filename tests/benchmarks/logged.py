"""What ``log`` costs: a bare loop, and the same with 1, 20 and 200 names logged in each step, in one process.

``python -m tests.benchmarks.logged [--width 256] [--steps 1000]`` prints the processor time of a step of each (of all
threads of the process, so that of the log's writer too), its ratio to the bare loop, and how many of its steps have
values. The loops take turns after each step, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.benchmarks.machine import describe_machine
from workbench.core.config import TrainSpec
from workbench.core.mesh import Mesh
from workbench.engine.base.user_log import UserLog
from workbench.engine.logged.observer import LoggedValues
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store

NAMES = (0, 1, 20, 200)


class Loop:
    """A training loop that logs ``names`` values a step in ``run``; 0: nothing of ours runs."""

    def __init__(self, names: int, width: int, run: Path) -> None:
        torch.manual_seed(0)
        self.names, self.run = [f"layer {number}/mean" for number in range(names)], run
        self.model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(4)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.inputs = torch.randn(64, width)
        self.step, self.log = 0, UserLog()
        self.watch = 0
        if names:
            strategy: Any = SimpleNamespace(rank=0, coordinates=Mesh().coordinates(0), tell=print, spec=TrainSpec())
            self.writer = RankLogWriter(run, 0)
            self.logged = LoggedValues(self.log, strategy, self.writer)

    def train(self) -> float:
        """One step; its seconds."""
        began = time.process_time()
        self.step += 1
        if self.names:
            self.logged.begins(self.step, self.watch)
            self.watch = self.logged.propose(self.step)
        loss = (self.model(self.inputs) - self.inputs).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        for name in self.names:
            self.log(name, loss)
        self.optimizer.step()
        if self.names:
            self.logged.ends(self.step)
            self.logged.accounted(self.step, self.logged.cost_ms)
        return time.process_time() - began

    def steps_with_values(self) -> int:
        """How many steps the log has values of."""
        if not self.names:
            return 0
        self.logged.close()
        self.writer.close()
        store = Store(self.run)
        store.refresh()
        return np.unique(store.table("values")["step"]).size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loops = [Loop(names, options.width, Path(folder) / str(names)) for names in NAMES]
        seconds: dict[int, list[float]] = {names: [] for names in NAMES}
        for _ in range(options.steps):
            for loop in loops:
                seconds[len(loop.names)].append(loop.train())
        print(describe_machine())
        bare = float(np.mean(seconds[0]))
        for loop in loops:
            own = float(np.mean(seconds[len(loop.names)]))
            print(
                f"{len(loop.names):4} names: {own * 1e3:7.3f} ms a step, {own / bare:.3f} of the bare loop, values of "
                f"{loop.steps_with_values()} of {loop.step} steps"
            )


if __name__ == "__main__":
    main()

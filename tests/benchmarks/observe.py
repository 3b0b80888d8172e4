"""What observing a loop costs: a bare loop, the same observed by us, and under ``wandb.watch`` (offline).

    python tests/benchmarks/observe.py [--rounds 8] [--steps 20]

Each side is a process of its own, and they take turns of some steps, so that what else the machine does meets all
alike. Prints, for steps of about 50 and 100 ms, the median over the rounds of a side's time relative to the bare loop's
in the same round: of the processor (all threads of the process) and by the clock, with their quartiles.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("bare", "workbench", "wandb")
#: of the processor, that a step is to take
STEP_MS = (50, 100)
WIDTH, LAYERS, WARM = 512, 6, 5


class Side:
    """A process that trains when it is told to."""

    def __init__(self, name: str, batch: int, folder: str) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "WORKBENCH_HOME": folder,
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, "--batch", str(batch)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, steps: int) -> tuple[float, float]:
        """Milliseconds of a step: of the processor, by the clock."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(steps, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("took "):
                _, cpu, wall = line.split()
                return float(cpu), float(wall)
        raise SystemExit(f"a side ended with code {self._process.wait()}")

    def end(self) -> None:
        """Let the process come to its end."""
        self._process.communicate()


def trainer(name: str, batch: int) -> Callable[[], None]:
    """A function that makes one step of a side's loop."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(batch, WIDTH)
    run: Any = None
    if name == "workbench":
        import workbench

        run = workbench.observe(model, optimizer, name="benchmark")
    if name == "wandb":
        import wandb

        run = wandb.init(project="benchmark")
        run.watch(model)

    def step() -> None:
        optimizer.zero_grad()
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        if name == "workbench":
            run.step(loss)
        if name == "wandb":
            run.log({"loss": loss.item()})

    return step


def serve(name: str, batch: int) -> None:
    """The process of a side: reads how many steps to make, and says how long one took."""
    step = trainer(name, batch)
    for line in sys.stdin:
        steps = int(line)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            step()
        took = (time.process_time() - cpu, time.perf_counter() - wall)
        print("took", *(each / steps * 1e3 for each in took), flush=True)


def measure(step_ms: int, rounds: int, steps: int, folder: str) -> None:
    """Print the line of each side for steps of about ``step_ms``."""
    probe = Side("bare", 64, folder)
    probe.train(WARM)
    batch = max(1, round(64 * step_ms / probe.train(steps)[0]))
    probe.end()
    sides = {name: Side(name, batch, folder) for name in SIDES}
    for side in sides.values():
        side.train(WARM)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for number in range(rounds):
        for name in SIDES if number % 2 else reversed(SIDES):
            found[name].append(sides[name].train(steps))
    for side in sides.values():
        side.end()
    bare = found["bare"]
    print(f"steps of {statistics.median(cpu for cpu, _ in bare):.0f} ms of the processor, batch {batch}")
    for name in SIDES[1:]:
        for index, kind in enumerate(("processor", "clock")):
            ratios = [own[index] / base[index] for own, base in zip(found[name], bare, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"  {name:10} {kind:10} {middle:.3f}x ({low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.side is not None:
        serve(arguments.side, arguments.batch)
        return
    from tests.benchmarks.machine import describe_machine

    print(describe_machine())
    for step_ms in STEP_MS:
        with tempfile.TemporaryDirectory() as folder:
            measure(step_ms, arguments.rounds, arguments.steps, folder)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

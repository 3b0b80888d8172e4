"""What observing a loop costs: a bare loop, the same observed by us, by TraceML, by ``wandb.watch`` and by msProbe.

    python tests/benchmarks/observe.py [--rounds 12] [--turn 20] [--step-ms 200]

The others are measured where they are installed (best in an environment of their own: they bring packages that
workbench does not need), and it is said where they are not::

    pip install traceml-ai mindstudio-probe wandb

Each side is a process of its own that trains on one thread, and they take turns of some steps, so that what else the
machine does meets all alike; who waits is stopped (SIGSTOP), threads and helpers too. Counted is the time of the
processor, of all threads of the process, and apart from it that of the processes that it started. Printed is the sum
over all rounds relative to the bare loop's, with the quartiles that resampling the rounds gives. ``control`` is another
bare loop: what its figure differs from 1 by is what two processes differ by on this machine.

What each records: gradients, phases and device samples within 1 % (us); phases by ``trace_step`` under ``traceml run``
in its mode "summary", and no gradients (TraceML); a histogram of each gradient in every 100th step, by default every
1000th (wandb); the norm of each gradient in every step (msProbe).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
#: side -> the module that it needs
SIDES = {
    "bare": "torch",
    "control": "torch",
    "workbench": "workbench",
    "traceml": "traceml_ai",
    "wandb": "wandb",
    "msprobe": "msprobe",
}
WIDTH, LAYERS, WARM, PROBED = 512, 6, 10, 64


class Side:
    """A process that trains when it is told to, and is stopped otherwise."""

    def __init__(self, name: str, batch: int, folder: Path) -> None:
        address = str(folder / f"{name}-{batch}")
        words = [__file__, "--side", name, "--batch", str(batch), "--address", address]
        python = Path(sys.executable)
        if name == "traceml":
            words = [str(python.with_name("traceml")), "run", words[0], "--mode", "summary", "--args", *words[1:]]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": str(ROOT),
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "WORKBENCH_HOME": str(folder / "runs"),
            "MONITOR_OUTPUT_DIR": str(folder / "msprobe"),
        }
        self._output = open(folder / f"{name}.txt", "w")  # noqa: SIM115
        with Listener(address, "AF_UNIX") as listener:
            self._process = psutil.Popen(
                [str(python), *words], cwd=folder, env=environment, stdout=self._output, stderr=subprocess.STDOUT
            )
            self._connection = listener.accept()
        self._trainer = psutil.Process(self._connection.recv())
        self.train(WARM)

    def train(self, steps: int) -> tuple[float, float]:
        """Milliseconds of the processor of a step: of the process that trains, and of all others that it has."""
        everyone = [self._process, *self._process.children(recursive=True)]
        others = [each for each in everyone if each.pid != self._trainer.pid]
        for each in reversed(everyone):
            each.resume()
        before = _processor_s(others)
        self._connection.send(steps)
        own_s = self._connection.recv()
        after = _processor_s(others)
        for each in everyone:
            each.suspend()
        return own_s / steps * 1e3, (after - before) / steps * 1e3

    def end(self) -> None:
        """Let the process come to its end."""
        for each in [*self._process.children(recursive=True), self._process]:
            each.resume()
        self._connection.send(0)
        self._process.wait()
        self._output.close()


def _processor_s(processes: list[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes if each.is_running())


Step = AbstractContextManager[Any]


def watcher(name: str, model: Any, optimizer: Any, folder: Path) -> tuple[Callable[[], Step], Callable[[Any], object]]:
    """What a side puts around each step, and what it does with the loss after it."""
    if name == "workbench":
        import workbench

        run = workbench.observe(model, optimizer, name="benchmark")
        return nullcontext, run.step
    if name == "traceml":
        import traceml_ai

        traceml_ai.init()
        return lambda: traceml_ai.trace_step(model), lambda loss: None
    if name == "wandb":
        import wandb

        logged = wandb.init(project="benchmark")
        logged.watch(model, log_freq=100)
        return nullcontext, lambda loss: logged.log({"loss": loss.item()})
    if name == "msprobe":
        from msprobe.pytorch import TrainerMon

        config = folder / "monitor.json"
        config.write_text(json.dumps({"targets": {}, "wg_distribution": True, "format": "csv", "ops": ["norm"]}))
        TrainerMon(str(config), params_have_main_grad=False).set_monitor(model, grad_acc_steps=1, optimizer=optimizer)
    return nullcontext, lambda loss: None


def serve(name: str, batch: int, address: str) -> None:
    """The process of a side: is told how many steps to make, and says what they took of the processor."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(batch, WIDTH)
    around, told = watcher(name, model, optimizer, Path(address).parent)
    with Client(address, "AF_UNIX") as connection:
        connection.send(os.getpid())
        while steps := connection.recv():
            began = time.process_time()
            for _ in range(steps):
                with around():
                    optimizer.zero_grad()
                    loss = (model(x) - x).square().mean()
                    loss.backward()
                    optimizer.step()
                told(loss)
            connection.send(time.process_time() - began)


def relative(own: list[float], bare: list[float]) -> str:
    """The ratio of the sums, and its quartiles over resampled rounds."""
    draw = random.Random(0)
    ratios = []
    for _ in range(1000):
        rounds = [draw.randrange(len(own)) for _ in own]
        ratios.append(sum(own[each] for each in rounds) / sum(bare[each] for each in rounds))
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{sum(own) / sum(bare):.3f}x ({low:.3f} to {high:.3f})"


def measure(names: list[str], step_ms: int, rounds: int, turn: int, folder: Path) -> None:
    """Print the line of each side for steps of about ``step_ms``."""
    probe = Side("bare", PROBED, folder)
    batch = max(1, round(PROBED * step_ms / probe.train(turn)[0]))
    probe.end()
    sides = {name: Side(name, batch, folder) for name in names}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in random.sample(names, len(names)):
            found[name].append(sides[name].train(turn))
    for side in sides.values():
        side.end()
    bare = [own for own, _ in found["bare"]]
    print(f"steps of {statistics.mean(bare):.0f} ms of the processor, batch {batch}, {rounds * turn} steps a side")
    for name in names[1:]:
        with_others = [own + others for own, others in found[name]]
        own = relative([own for own, _ in found[name]], bare)
        print(f"  {name:10} {own}, with its other processes {relative(with_others, bare)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--turn", type=int, default=20, help="steps")
    parser.add_argument("--step-ms", type=int, nargs="+", default=[200])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--address")
    arguments = parser.parse_args()
    if arguments.side is not None:
        serve(arguments.side, arguments.batch, arguments.address)
        return
    from tests.benchmarks.machine import describe_machine

    print(describe_machine())
    wanted = ["bare", *(name for name in arguments.sides if name != "bare")]
    names = [name for name in wanted if importlib.util.find_spec(SIDES[name]) is not None]
    for name in wanted:
        if name not in names:
            print(f"  {name:10} is not installed")
    for step_ms in arguments.step_ms:
        folder = Path(tempfile.mkdtemp())
        measure(names, step_ms, arguments.rounds, arguments.turn, folder)
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

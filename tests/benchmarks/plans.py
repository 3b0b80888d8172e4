"""Each plan through ``workbench.train`` against the bare script of its framework: the same plan, model and data.

    python -m tests.benchmarks.plans [--ranks 2 4] [--plans ddp tp torch-tp] [--pairs 3] [--steps 30]
    python -m tests.benchmarks.plans --switch [--pairs 3]

The scripts are ``bare.py`` (a Colossal-AI booster loop), ``plans/bare_torch.py`` (DistributedDataParallel, FSDP2,
DTensor, torch.distributed.pipelining) and ``plans/bare_deepspeed.py`` under torchrun, and ``plans/bare_mpi.py`` under
mpiexec. DeepSpeed and MPI are those of ``workbench env create``. The two sides run in turn, and each pair gives a ratio
of steps per second by the median step. Prints for each plan that ratio (goal: 0.99x), the most memory of a rank on both
sides (proportional set size, so that shared libraries count once), and of another run that writes checkpoints the pause
between two steps and the time until a checkpoint is on the disk. ``--switch``: a running training goes on under another
plan; seconds from ``Run.switch`` to the end of the first step there (goal: 2 s), and the losses before and after.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import workbench
from tests.benchmarks import checkpoint
from tests.benchmarks.machine import describe_machine
from workbench.cluster.session import Session
from workbench.core.environments import python_for
from workbench.core.frameworks import framework, installed

ROOT = Path(__file__).resolve().parents[2]
GOAL, SWITCH_GOAL_S = 0.99, 2.0
#: first steps that do not count, as in the scripts
_WARM_UP = 10
#: name -> words of the plan, the script and its options; ``{n}`` is the number of ranks
PLANS = {
    "ddp": ("ddp", "bare.py", "--plugin ddp"),
    "zero1": ("zero1", "bare.py", "--plugin zero1"),
    "zero2": ("zero2", "bare.py", "--plugin zero2"),
    "tp": ("tp{n}", "bare.py", "--tp {n}"),
    "pp": ("pp{n}", "bare.py", "--pp {n}"),
    "torch-ddp": ("torch ddp", "plans/bare_torch.py", "--plan ddp"),
    "torch-fsdp": ("torch fsdp", "plans/bare_torch.py", "--plan fsdp"),
    "torch-tp": ("torch hybrid tp{n}", "plans/bare_torch.py", "--plan tp"),
    "torch-pp": ("torch hybrid pp{n}", "plans/bare_torch.py", "--plan pp"),
    "deepspeed-zero1": ("deepspeed zero1", "plans/bare_deepspeed.py", "--stage 1"),
    "deepspeed-zero2": ("deepspeed zero2", "plans/bare_deepspeed.py", "--stage 2"),
    "deepspeed-zero3": ("deepspeed zero3", "plans/bare_deepspeed.py", "--stage 3"),
    "mpi": ("mpi ddp", "plans/bare_mpi.py", ""),
}


class Memory:
    """The most memory of one process of those that ``pids`` names, in bytes, looked at twice a second."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.most = 0
        self._pids, self._stop = pids, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            for pid in self._pids():
                try:
                    self.most = max(self.most, psutil.Process(pid).memory_full_info().pss)
                except psutil.NoSuchProcess:
                    continue  # it has ended


@dataclass
class Side:
    """Of one side: median step of each repeat in ms, and the most memory of a rank in bytes."""

    steps_ms: list[float] = field(default_factory=list)
    memory: int = 0


def bare(name: str, ranks: int, options: argparse.Namespace, into: Side) -> None:
    """Run the script under torchrun, or under mpiexec."""
    plan, script, words = PLANS[name]
    own = plan.split()[0]
    python = (python_for(framework(own)) if own in installed() else "") or sys.executable
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    if own == "mpi":
        command = [str(Path(python).with_name("mpiexec")), "-n", str(ranks), python]
    command += [str(ROOT / "tests/benchmarks" / script), *words.format(n=ranks).split()]
    command += ["--steps", str(options.steps), "--batch-size", str(options.batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as torchrun,
        Memory(lambda: [child.pid for child in psutil.Process(torchrun.pid).children()]) as memory,
    ):
        printed, _ = torchrun.communicate()
    if torchrun.returncode:
        raise SystemExit(f"{script} ended with {torchrun.returncode}")
    into.steps_ms.append(float(printed.split()[0]))
    into.memory = max(into.memory, memory.most)


def ours(name: str, ranks: int, options: argparse.Namespace, into: Side) -> None:
    """Train the same with the defaults of ``workbench.train``."""
    run = train(name, ranks, options)
    with Memory(session().pids.values) as memory:
        run.wait(timeout=1200)
    times = run.metrics(per_rank=True).query("rank == 0")["time"].to_numpy()
    into.steps_ms.append(1e3 * float(np.median(np.diff(times[_WARM_UP - 1 :]))))
    into.memory = max(into.memory, memory.most)


def train(name: str, ranks: int, options: argparse.Namespace, **more: Any) -> workbench.Run:
    """Begin to train the recipe under a plan."""
    spec = {"recipe": "stdlib-llama", "ranks": ranks, "plan": PLANS[name][0].format(n=ranks), "eval_every": 0}
    sizes = {"steps": options.steps, "batch_size": options.batch_size, "final_checkpoint": False}
    return workbench.train({**spec, **sizes, **more})


def session() -> Session:
    """The ranks that are up."""
    found = Session.current()
    assert found is not None
    return found


def compare(name: str, ranks: int, options: argparse.Namespace) -> None:
    """Print what one plan costs."""
    script, workbench_ = Side(), Side()
    for _ in range(options.pairs):
        bare(name, ranks, options, script)
        ours(name, ranks, options, workbench_)
    run = train(name, ranks, options, save_every=options.steps // 3, keep=3)
    run.wait(timeout=1200)
    saved = checkpoint.costs(run.path, options.steps // 3)
    ratios = [before / after for before, after in zip(script.steps_ms, workbench_.steps_ms, strict=True)]
    print(
        f"{name:10} {ranks} ranks: bare {1e3 / statistics.median(script.steps_ms):6.2f} steps/s, workbench "
        f"{1e3 / statistics.median(workbench_.steps_ms):6.2f}, {statistics.median(ratios):.3f}x ({min(ratios):.3f} to "
        f"{max(ratios):.3f}), goal >= {GOAL}x; memory of a rank {script.memory / 2**20:.0f} and "
        f"{workbench_.memory / 2**20:.0f} MiB; a checkpoint of {saved.bytes / 2**20:.0f} MiB stops training for "
        f"{saved.stall_ms - saved.between_ms:.0f} ms and is on the disk after {saved.written_s:.2f} s",
        flush=True,
    )


def switch(ranks: int, options: argparse.Namespace) -> None:
    """Print how long ``Run.switch`` takes, and whether the loss goes on."""
    train("ddp", ranks, options, steps=_WARM_UP).wait(timeout=1200)  # ranks are up, and all is loaded
    one = train("ddp", ranks, options, steps=10_000)
    turns, taken = ["zero2", "tp", "ddp"], []
    for turn in range(options.pairs):
        name = turns[turn % len(turns)]
        while one.last_step < 3:
            time.sleep(0.02)
        asked = time.time()
        other = one.switch(PLANS[name][0].format(n=ranks))
        while not len(other.metrics()):
            time.sleep(0.02)
        last, first = one.metrics().iloc[-1], other.metrics().iloc[0]
        taken.append(first["time"] - asked)
        print(
            f"{one.plan.describe()} -> {other.plan.describe()}: {taken[-1]:.2f} s from the call to the end of the "
            f"first step, {first['time'] - last['time']:.2f} s after the last one; loss of step {last['step']:.0f} "
            f"{last['loss']:.4f}, of step {first['step']:.0f} {first['loss']:.4f}",
            flush=True,
        )
        one = other
    one.stop()
    print(f"switch: median {statistics.median(taken):.2f} s, goal <= {SWITCH_GOAL_S:.0f} s")


def main(about: str | None = __doc__, plans: Sequence[str] = tuple(PLANS)) -> None:
    """``about``: what ``--help`` says; ``plans``: those that are compared unless others are asked for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--plans", nargs="+", default=list(plans), choices=list(PLANS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--switch", action="store_true", help="measure Run.switch in place of the plans")
    options = parser.parse_args()
    if options.steps < 2 * _WARM_UP:
        parser.error(f"--steps {options.steps}: the first {_WARM_UP} do not count, so use {2 * _WARM_UP} or more")
    print(describe_machine())
    with tempfile.TemporaryDirectory() as home:
        os.environ["WORKBENCH_HOME"] = home
        try:
            for ranks in options.ranks:
                for name in options.plans if not options.switch else ():
                    compare(name, ranks, options)
                if options.switch:
                    switch(ranks, options)
        finally:
            if Session.current() is not None:
                session().down()


if __name__ == "__main__":
    main()

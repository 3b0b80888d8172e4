"""Steps per second: a bare Colossal-AI script under torchrun against ``%dist_train`` with everything on.

Both train the same model (stdlib-llama, 2 CPU ranks) on the same batches; the pairs are run in turn (A B A B) and each
pair gives a ratio. Everything on: rank logs, device samples, gradient statistics at the default interval, agreed
control, and a store that is read at 2 Hz as the panel does. Beside the time by the clock, on a machine that others use
too the quieter figure: processor time of rank 0, all its threads together.

    python tests/benchmarks/overhead.py [--pairs 5] [--plugin ddp] [--steps 100] [--batch-size 16]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from tests.benchmarks.machine import describe_machine
from workbench.telemetry.store import Store

ROOT = Path(__file__).resolve().parents[2]
GOAL = 0.99


def bare(arguments: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds per step of the script, by the clock and of the processor."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests/benchmarks/bare.py"), "--plugin", arguments.plugin, "--tp", str(arguments.tp),
              "--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]  # fmt: skip
    done = subprocess.run([*launcher, *script], env=environment, check=True, capture_output=True, text=True, cwd=ROOT)
    wall, processor = map(float, done.stdout.split()[-2:])
    return wall, processor


def ours(shell: InteractiveShell, arguments: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds per step of ``%dist_train``, from rank 0's log, and of the processor, from its samples."""
    line = (
        f"--recipe stdlib-llama -n 2 --plugin {arguments.plugin} --tp {arguments.tp} --steps {arguments.steps} "
        f"--batch-size {arguments.batch_size} --eval-every 0 --quiet"
    )
    run: Any = shell.run_line_magic("dist_train", line)
    store = Store(run.path)
    while not run.ended():
        store.refresh()
        time.sleep(0.5)
    run.raise_if_failed()
    steps = run.metrics(per_rank=True).query("rank == 0")["time"].to_numpy()
    wall = float((steps[-1] - steps[9]) / (len(steps) - 10) * 1e3)
    samples = run.devices().query("rank == 0").sort_values("time")
    before, after = samples[samples["time"] <= steps[9]], samples[samples["time"] > steps[9]]
    seconds = after["time"].diff().fillna(after["time"].iloc[0] - before["time"].iloc[-1])
    return wall, float((after["cpu_percent"] * seconds).sum() / seconds.sum()) / 100 * wall


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--plugin", default="ddp")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    print(describe_machine())
    shell = InteractiveShell.instance()
    ratios: dict[str, list[float]] = {"speed": [], "processor": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_HOME"] = folder
        shell.run_line_magic("load_ext", "workbench")
        shell.run_line_magic("dist_up", "-n 2")
        try:
            for _ in range(arguments.pairs):
                (script, script_cpu), (magic, magic_cpu) = bare(arguments), ours(shell, arguments)
                ratios["speed"].append(script / magic)
                ratios["processor"].append(magic_cpu / script_cpu)
                print(f"bare {script:7.2f} ms/step, {script_cpu:7.2f} of the processor   %dist_train {magic:7.2f}, "
                      f"{magic_cpu:7.2f}   speed {ratios['speed'][-1]:.3f}x")  # fmt: skip
        finally:
            shell.run_line_magic("dist_down", "")
    for name, found in ratios.items():
        goal = f", goal >= {GOAL}x" if name == "speed" else ""
        print(f"{name} of %dist_train: median {statistics.median(found):.3f}x of bare "
              f"({min(found):.3f} to {max(found):.3f}){goal}")  # fmt: skip


if __name__ == "__main__":
    main()

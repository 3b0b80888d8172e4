"""Steps per second: a bare Colossal-AI script under torchrun against ``%dist_train`` with everything on.

Both train the same model (stdlib-llama, 2 CPU ranks) on the same batches; the pairs are run in turn (A B A B) and each
pair gives a ratio. Everything on: rank logs, device samples, gradient statistics at the default interval, agreed
control, and a store that is read at 2 Hz as the panel does.

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


def bare(arguments: argparse.Namespace) -> float:
    """Milliseconds per step of the script."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests/benchmarks/bare.py"), "--plugin", arguments.plugin, "--tp", str(arguments.tp),
              "--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]  # fmt: skip
    done = subprocess.run([*launcher, *script], env=environment, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout.split()[-1])


def ours(shell: InteractiveShell, arguments: argparse.Namespace) -> float:
    """Milliseconds per step of ``%dist_train``, from the times in rank 0's log."""
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
    return float((steps[-1] - steps[9]) / (len(steps) - 10) * 1e3)


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
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_HOME"] = folder
        shell.run_line_magic("load_ext", "workbench")
        shell.run_line_magic("dist_up", "-n 2")
        try:
            for _ in range(arguments.pairs):
                script, magic = bare(arguments), ours(shell, arguments)
                ratios.append(script / magic)
                print(f"bare {script:7.2f} ms/step   %dist_train {magic:7.2f} ms/step   speed {ratios[-1]:.3f}x")
        finally:
            shell.run_line_magic("dist_down", "")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"speed of %dist_train: median {statistics.median(ratios):.3f}x of bare ({spread}), goal >= {GOAL}x")


if __name__ == "__main__":
    main()

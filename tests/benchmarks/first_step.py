"""Time from the command to the first training step, 4 CPU ranks, tensor parallel 2 x pipeline 2.

Left: the same model from a bare Colossal-AI script under torchrun. Right: ``%dist_train`` cold (a fresh kernel: load
the extension and train), warm (extension loaded, no ranks up) and with ranks up. Both with compiled bytecode.

    python tests/benchmarks/first_step.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
GOALS = {"cold": 0.45, "warm": 0.10, "up": 0.05}
FLAGS = "--recipe stdlib-llama -n 4 --plugin hybrid --tp 2 --pp 2 --steps 2 --batch-size 8 --eval-every 0 --quiet"


def torchrun(environment: dict[str, str], folder: Path) -> float:
    """Seconds from starting torchrun to the end of the first optimizer step of rank 0."""
    stamp = folder / "stamp"
    stamp.unlink(missing_ok=True)
    started = time.time()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    script = [str(ROOT / "tests/benchmarks/bare.py"), "--tp", "2", "--pp", "2", "--steps", "1", "--batch-size", "8"]
    subprocess.run(
        [*command, *script, "--stamp", str(stamp)], env=environment, check=True, capture_output=True, cwd=ROOT
    )
    return float(stamp.read_text()) - started


def kernel(environment: dict[str, str], folder: Path) -> dict[str, float]:
    """Seconds to the first step in the three conditions, from one fresh kernel process."""
    done = subprocess.run(
        [sys.executable, __file__, "--kernel"],
        env={**environment, "WORKBENCH_HOME": str(folder)},
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def run_kernel() -> None:
    """What the kernel process does; prints its figures as JSON."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    figures = {}
    started = time.time()
    shell.run_line_magic("load_ext", "workbench")
    figures["cold"] = first_step(shell, started)
    shell.run_line_magic("dist_down", "")
    warm_up()
    figures["warm"] = first_step(shell, time.time())
    figures["up"] = first_step(shell, time.time())
    shell.run_line_magic("dist_down", "")
    print(json.dumps(figures))


def warm_up() -> None:
    """Start a rank server as loading the extension does, and wait until it has imported everything."""
    from workbench.cluster import spare

    spare.warm_up()
    server = spare.start_spare()
    while not any(warmth.state == "warm" for warmth in server.warmth.values()):
        time.sleep(0.05)


def first_step(shell: object, started: float) -> float:
    run = shell.run_line_magic("dist_train", FLAGS)  # type: ignore[attr-defined]
    run.wait(timeout=120)
    return float(run.metrics()["time"].iloc[0]) - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kernel:
        run_kernel()
        return
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    print(describe_machine())
    times: dict[str, list[float]] = {"torchrun": [], **{name: [] for name in GOALS}}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds + 1):  # the first round compiles bytecode and is not counted
            figures = {"torchrun": torchrun(environment, Path(folder)), **kernel(environment, Path(folder))}
            if number:
                for name, value in figures.items():
                    times[name].append(value)
    base = statistics.median(times["torchrun"])
    for name, values in times.items():
        median = statistics.median(values)
        ratio = f"{median / base:5.3f}x of torchrun (goal <= {GOALS[name]:.2f}x)" if name in GOALS else ""
        print(f"{name:>9}: median {median:6.2f} s  ({min(values):.2f} to {max(values):.2f})  {ratio}")


if __name__ == "__main__":
    main()

"""What it costs that ranks can be asked why they hang, and how soon they answer.

    python tests/benchmarks/live_rows.py [--step-ms 20] [--rounds 5] [--calls 1000]

Four figures: what a rank writes of a step (its begin and five phases) as a share of a step; a sum over gloo with
torch's flight recorder and without (sessions in turns); a look at 64 ranks for stalls as a share of the half second
between two looks; and the time of a verdict on two ranks of which one is late. Processor time, which other processes
of the machine change little; the verdict is wall time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pytest

from tests.benchmarks.machine import describe_machine
from workbench.cluster.session import Session
from workbench.core.live import rank_row
from workbench.diagnosis.glimpse import glimpses
from workbench.run.why import why

PHASES = ("monitor", "data", "forward_backward", "optimizer", "idle")
SIZE = "TORCH_FR_BUFFER_SIZE"
SUMS = """
import time, torch, torch.distributed as dist
x = torch.zeros(1)
dist.barrier()
began = time.process_time()
for _ in range({calls}):
    dist.all_reduce.__wrapped__(x)
spent = (time.process_time() - began) / {calls}
"""
LATE = "if rank == 0:\n    time.sleep(8)\ndist.all_reduce(x)"


def seconds_of_a_step(steps: int = 20_000) -> float:
    """What a rank writes of a step."""
    with tempfile.TemporaryDirectory() as directory:
        writer = rank_row.RowWriter(Path(directory), 0)
        began = time.process_time()
        for step in range(steps):
            writer.begin_step(step)
            for phase in PHASES:
                writer.enter(phase)
        return (time.process_time() - began) / steps


def seconds_of_a_look(ranks: int = 64) -> float:
    """A look at so many ranks, all of which are this process."""
    with tempfile.TemporaryDirectory() as directory:
        for rank in range(ranks):
            rank_row.RowWriter(Path(directory), rank)
        times = []
        for _ in range(20):
            began = time.process_time()
            glimpses(Path(directory), range(ranks))
            times.append(time.process_time() - began)
        return statistics.median(times)


def sums_and_verdict(rounds: int, calls: int) -> tuple[list[tuple[float, float]], float]:
    """Seconds of a sum (without, with the flight recorder) in each round; seconds of a verdict."""
    pairs, verdict_s = [], 0.0
    for _ in range(rounds):
        spent = []
        for size in ("0", "256"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(SIZE, size)
                session = Session.up(2, devices="cpu", framework="torch")
            try:
                session.execute(SUMS.format(calls=calls), timeout=600).raise_on_error()
                spent.append(session.pull("spent")[1])
                if size != "0" and not verdict_s:
                    late = session.submit(LATE)
                    time.sleep(1)
                    began = time.perf_counter()
                    found = why()
                    verdict_s = time.perf_counter() - began
                    assert found.missing == (0,), found
                    session.wait(late)
            finally:
                session.down()
        pairs.append((spent[0], spent[1]))
    return pairs, verdict_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, default=20.0, help="length of the step that writing is compared with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1000)
    arguments = parser.parse_args()
    print(describe_machine())
    step_s = seconds_of_a_step()
    print(f"row of a step: {step_s * 1e6:.2f} us, {100 * step_s / (arguments.step_ms / 1e3):.4f} % of a step")
    look_s = seconds_of_a_look()
    print(f"look at 64 ranks: {look_s * 1e3:.2f} ms, {100 * look_s / 0.5:.2f} % of a core")
    pairs, verdict_s = sums_and_verdict(arguments.rounds, arguments.calls)
    without, with_it = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(after / before for before, after in pairs)
    both = f"{without * 1e6:.1f} us, with the flight recorder {with_it * 1e6:.1f} us"
    print(f"all_reduce of 1 element: {both}, {ratio:.3f}x")
    print(f"verdict: {verdict_s:.2f} s")


if __name__ == "__main__":
    main()

"""Time from the death of a rank to the next step that is new, with ``--max-restarts``, on two CPU ranks.

The tiny ``stdlib-llama`` trains with a checkpoint, or a copy in memory, every 5 steps; rank 1 is killed and replaced,
the run goes on from the newest. Beside it: what a person waits who starts the run again with ``--resume`` on ranks that
are up; and what a run says that its copies in memory cost.

    python tests/benchmarks/restart.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time

from tests.benchmarks.machine import describe_machine
from workbench.cluster.session import Session
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.events.words import words
from workbench.run.api import Run, train

OPTIONS = {"recipe": "stdlib-llama", "ranks": 2, "steps": 100_000, "batch_size": 8, "eval_every": 0}
ON_DISK, IN_MEMORY = {"save_every": 5}, {"snapshot_every": 5}
GOAL_S = 5.0


def reached(run: Run, step: int) -> float:
    """When the run has finished ``step``."""
    while run.last_step < step:
        run.raise_if_failed()
        time.sleep(0.01)
    return time.time()


def restarted(kept: dict[str, int]) -> float:
    """Seconds from the death of rank 1 to the first step after those that were done. ``kept``: what state is kept."""
    run = train({**OPTIONS, **kept, "max_restarts": 1})
    reached(run, 12)
    session = Session.current()
    assert session is not None
    run.events()  # what reads them is imported once, which is no part of a restart
    os.kill(session.pids[1], signal.SIGKILL)
    died, done = time.time(), run.last_step
    while not len(told := run.events().query("name == 'restart'")):
        time.sleep(0.01)
    done = max(done, int(told["step"].iloc[0]))  # some steps are logged only when the rank ends
    waited = reached(run, done + 1) - died
    run.stop("no-checkpoint")
    run.wait()
    for event in of_kind(run.event_rows(), EventKind.CHECKPOINT, "snapshot"):
        print(words(event.kind, event.name, event.value), flush=True)
    return waited


def resumed() -> float:
    """Seconds from the command to the first new step of a run that is resumed on ranks that are up."""
    first = train({**OPTIONS, **ON_DISK})
    reached(first, 12)
    first.stop("checkpoint")
    first.wait()
    began, done = time.time(), first.last_step
    run = train({**OPTIONS, **ON_DISK, "resume": first.name})
    waited = reached(run, done + 1) - began
    run.stop("no-checkpoint")
    run.wait()
    return waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["WORKBENCH_HOME"] = home
        found = [(restarted(ON_DISK), restarted(IN_MEMORY), resumed()) for _ in range(rounds)]
        session = Session.current()
        if session is not None:
            session.down()
    death = "from the death of a rank to the next step"
    names = (f"{death}, from a checkpoint", f"{death}, from memory", "resumed by hand")
    for name, seconds in zip(names, zip(*found, strict=True), strict=True):
        print(f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    ratios = [statistics.median(own[place] / own[2] for own in found) for place in (0, 1)]
    print(f"relative to resuming by hand: {ratios[0]:.2f}x; {ratios[1]:.2f}x from memory")
    print(f"goal: {GOAL_S:g} s from the death to the next step")


if __name__ == "__main__":
    main()

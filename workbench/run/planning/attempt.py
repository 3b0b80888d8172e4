"""Runs a plan for a few steps, and reads what its ranks held, sent and took."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.cluster.hosts.machine import describe_host
from workbench.cluster.hosts.placement import place
from workbench.cluster.session import Session
from workbench.cluster.startup_notice import print_when_slow
from workbench.core.records import EventKind
from workbench.errors import WorkbenchError
from workbench.events.decode import of_kind
from workbench.run.job import TrainingJob
from workbench.run.peer_watch import PeerWatch
from workbench.run.resolve import Request
from workbench.run.run import Run
from workbench.rundir import directory as run_directory

#: steps of a plan that is tried, unless others are asked for
STEPS = 6
#: steps at the beginning that do not count, as they are slower
_WARM_UP = 2
#: DistributedDataParallel tells of a step in the next one
LEAST_STEPS = _WARM_UP + 2
#: what each call smaller than this carries is no tensor of the model: norms, flags, agreements
SMALL_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a few steps of a plan gave, by rank. ``parameters``, ``state``: bytes; ``grown``: how far the memory of a
    rank grew at most while it trained (NaN: not known). ``sent_bytes``: of a step's collectives and messages of 1 kB or
    more; ``step_s``: the median step after the first ones. ``failed``: why the plan could not be tried ("": it was)."""

    parameters: tuple[float, ...] = ()
    state: tuple[float, ...] = ()
    grown: tuple[float, ...] = ()
    sent_bytes: tuple[float, ...] = ()
    step_s: float = math.nan
    failed: str = ""
    by_kind: dict[tuple[int, str, str], float] = field(default_factory=dict)


def attempt(request: Request, steps: int) -> Attempt:
    """Run a plan for ``steps`` steps on ranks of this host, without evaluation and checkpoints. What its run directory
    holds is removed."""
    spec = request.spec.replace(
        steps=steps,
        epochs=0,
        eval_every=0,
        save_every=0,
        save_best="",
        stop_when="",
        final_checkpoint=False,
        max_restarts=0,
        snapshot_every=0,
        grad_every=0,
    )
    with tempfile.TemporaryDirectory(prefix="workbench-try-") as folder:
        path = Path(folder) / "run"
        path.mkdir()
        run_directory.create(spec, request.cell, like=request.cell_folder, at=path)
        try:
            run = _train(Run(path))
        except WorkbenchError as error:
            return Attempt(failed=str(error))
        return measured(run)


def _train(run: Run) -> Run:
    ranks, framework = run.plan.ranks, run.plan.framework
    session = Session.current()
    if session is None or session.n < ranks or not session.kind.can_train(framework):
        with print_when_slow():
            session = Session.start(place(ranks, describe_host()), framework=framework)
    job = TrainingJob(run)
    PeerWatch(session, job, job.start(session))
    return run.wait()


def measured(run: Run) -> Attempt:
    """What a run's records say of each rank."""
    held: dict[int, dict[str, Any]] = {
        event.rank: event.fields for event in of_kind(run._events(), EventKind.PEAK) if event.name == "held"
    }
    ranks = range(run.plan.ranks)
    by_kind = _sent(run)
    metrics = run.metrics()
    times = metrics["step_time_ms"].to_numpy()[_WARM_UP:]
    return Attempt(
        parameters=tuple(_number(held, rank, "parameters") for rank in ranks),
        state=tuple(_number(held, rank, "optimizer_state") for rank in ranks),
        grown=tuple(_number(held, rank, "grown") for rank in ranks),
        sent_bytes=tuple(sum(size for (each, _, _), size in by_kind.items() if each == rank) for rank in ranks),
        step_s=float(np.median(times)) / 1e3 if times.size else math.nan,
        by_kind=by_kind,
    )


def _number(held: dict[int, dict[str, Any]], rank: int, name: str) -> float:
    value = held.get(rank, {}).get(name)
    return math.nan if value is None else float(value)


def _sent(run: Run) -> dict[tuple[int, str, str], float]:
    """(rank, kind, group) -> bytes of a step, the mean over the recorded steps after the first ones."""
    calls = run.collectives()
    calls = calls[(calls["step"] > _WARM_UP) & (calls["bytes"] >= SMALL_BYTES)]
    steps = calls.groupby("rank")["step"].nunique()
    sums = calls.groupby(["rank", "kind", "group"])["bytes"].sum()
    return {(int(rank), str(kind), str(group)): float(size) / steps[rank] for (rank, kind, group), size in sums.items()}

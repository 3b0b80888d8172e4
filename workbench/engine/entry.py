"""What a rank is told to do: ``train("<run directory>")``, sent as text.

The run directory holds everything: the spec, the cell, the way to meet the other ranks, and the log that answers.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import io
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist

from workbench import checkpoints, controls
from workbench.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.engine.cell import workload_from_cell
from workbench.engine.control import AgreedControl
from workbench.engine.gradient_watch import GradientWatch
from workbench.engine.observer import StepObserver
from workbench.engine.process_group import joined
from workbench.engine.sampler import DeviceSampler, Progress
from workbench.engine.strategies.base import Strategy
from workbench.engine.trainer import Trainer
from workbench.engine.workload import Workload
from workbench.errors import ConfigError, nearest
from workbench.rank_log import RankLogWriter, rank_directory
from workbench.recipes.base import recipe
from workbench.run_directory import CELL_FILE, OUTPUT_FILE

STRATEGY_GROUP = "dist_workbench.strategies"


class PeerFailed(RuntimeError):
    """Another rank could not set up its part, so this one does not start."""


def train(run: str) -> None:
    """Train the run in this directory on this rank. Failures become a ``state failed`` event; nothing is raised but
    what cannot be logged (``RunDirectoryError``)."""
    path = Path(run)
    rank = int(os.environ["RANK"])
    spec = TrainSpec.from_options(read_spec_options(path / SPEC_FILE))
    progress = Progress()
    with RankLogWriter(path, rank) as log, _output_kept(rank_directory(path, rank) / OUTPUT_FILE):
        log.event("state", "starting", {"pid": os.getpid(), "device": _device()})
        sampler = DeviceSampler(log, rank=rank, hz=spec.monitor.sample_hz, device=_device(), state=progress)
        sampler.start()
        try:
            outcome = _train(path, spec, rank, log, progress)
        except BaseException as error:
            _log_failure(log, error, progress.step)
            if not isinstance(error, Exception):
                raise
        else:
            log.event("state", outcome, step=progress.step)
        finally:
            sampler.stop()
            gc.collect()


def _train(path: Path, spec: TrainSpec, rank: int, log: RankLogWriter, progress: Progress) -> str:
    with joined(rank, spec.plan.ranks, path, seed=spec.seed):
        strategy = load_strategy(spec)(spec, rank)
        workload = _agreed_workload(path, spec, strategy)
        try:
            strategy.prepare(workload)
            control = AgreedControl(path, rank, spec.plan.ranks)
            trainer = Trainer(
                spec=spec,
                workload=workload,
                strategy=strategy,
                control=control,
                log=log,
                progress=progress,
                run=path,
                observers=_observers(spec, strategy, log),
                resume=_checkpoint(spec),
            )
            return trainer.run()
        finally:
            strategy.close()


def _checkpoint(spec: TrainSpec) -> Path | None:
    """The checkpoint to go on from; ``ConfigError`` when it is not there (any more)."""
    if not spec.resume:
        return None
    run, step = checkpoints.split(spec.resume)
    return checkpoints.find(run, step)


def _observers(spec: TrainSpec, strategy: Strategy, log: RankLogWriter) -> list[StepObserver]:
    """What watches the steps of this run."""
    return [] if spec.monitor.level == "off" else [GradientWatch(spec.monitor, strategy, log)]


def load_strategy(spec: TrainSpec) -> type[Strategy]:
    """The strategy class that the plan names, from the entry points of the group ``dist_workbench.strategies``."""
    known = {point.name: point for point in importlib.metadata.entry_points(group=STRATEGY_GROUP)}
    if spec.plan.strategy not in known:
        raise ConfigError(f"unknown strategy {spec.plan.strategy!r}: {nearest(spec.plan.strategy, known)}")
    return known[spec.plan.strategy].load()


def _agreed_workload(path: Path, spec: TrainSpec, strategy: Strategy) -> Workload:
    """Build the workload; when one rank cannot, no rank starts."""
    failure: BaseException | None = None
    controls.knobs.clear()  # those of a run before
    try:
        workload = workload_from_cell(path / CELL_FILE, spec) if not spec.recipe else recipe(spec.recipe).build(spec)
        strategy.check(spec, workload)
    except BaseException as error:  # answered below, on every rank
        failure = error
    if spec.plan.ranks > 1:
        failures = torch.tensor([failure is not None], dtype=torch.int32, device=_device())
        dist.all_reduce(failures)
        if failure is None and int(failures):
            raise PeerFailed(f"{int(failures)} of {spec.plan.ranks} ranks failed to build the model")
    if failure is not None:
        raise failure
    return workload


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _log_failure(log: RankLogWriter, error: BaseException, step: int) -> None:
    value = {
        "ename": type(error).__name__,
        "evalue": str(error),
        "traceback": _traceback_of_user(error),
        "peer": isinstance(error, PeerFailed | dist.DistError),
    }
    log.event("state", "failed", value, step=step)


def _traceback_of_user(error: BaseException) -> str:
    """The traceback as text, from the first frame of the cell on when the cell raised."""
    entries = traceback.TracebackException.from_exception(error)
    frames = list(entries.stack)
    for index, frame in enumerate(frames):
        if Path(frame.filename).name == CELL_FILE:
            entries.stack = traceback.StackSummary.from_list(frames[index:])
            break
    return "".join(entries.format())


class _Tee(io.TextIOBase):
    """Writes to the rank's output file and to where output went before (the engine's stream to the notebook)."""

    def __init__(self, *streams: TextIO) -> None:
        self._streams = streams

    def write(self, text: str) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()


@contextlib.contextmanager
def _output_kept(file: Path) -> Iterator[None]:
    with (
        file.open("a", encoding="utf-8", buffering=1) as kept,
        contextlib.redirect_stdout(_Tee(kept, sys.stdout)),
        contextlib.redirect_stderr(_Tee(kept, sys.stderr)),
    ):
        yield

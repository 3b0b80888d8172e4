"""The training loop of one rank. It reads as plain PyTorch: data, forward and backward, step, scheduler, records.

What differs between frameworks is behind ``Strategy``; what is observed goes to the rank log and never delays a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from workbench.config import TrainSpec
from workbench.engine.control import AgreedControl
from workbench.engine.data import samples_in, split
from workbench.engine.observer import StepObserver
from workbench.engine.sampler import Progress
from workbench.engine.strategies.base import Strategy
from workbench.engine.workload import Batch, Workload
from workbench.rank_log import RankLogWriter
from workbench.records import Command, StepRecord


@dataclass(slots=True)
class _Measured:
    """A finished step whose tensors are not on the host yet."""

    step: int
    loss: torch.Tensor | None
    grad_sq: torch.Tensor
    lr: float
    tokens: int
    step_time_ms: float
    data_wait_ms: float
    skipped: bool
    clip: float
    monitor_ms: float

    def record(self, rank: int) -> StepRecord:
        return StepRecord(
            time=time.time(),
            step=self.step,
            rank=rank,
            loss=math.nan if self.loss is None else float(self.loss),
            lr=self.lr,
            grad_sq=float(self.grad_sq),
            tokens=self.tokens,
            step_time_ms=self.step_time_ms,
            data_wait_ms=self.data_wait_ms,
            skipped=self.skipped,
            clip=self.clip,
            monitor_ms=self.monitor_ms,
        )


class Trainer:
    """Trains a prepared strategy for ``spec.steps`` steps, or until a stop is agreed.

    ``run()`` returns "finished" or "stopped". Every rank of the plan calls it at the same time.
    """

    def __init__(
        self,
        *,
        spec: TrainSpec,
        workload: Workload,
        strategy: Strategy,
        control: AgreedControl,
        log: RankLogWriter,
        progress: Progress,
        observers: Sequence[StepObserver] = (),
    ) -> None:
        self.spec = spec
        self.workload = workload
        self.strategy = strategy
        self.control = control
        self.log = log
        self.progress = progress
        self.observers = observers
        self._in_flight: _Measured | None = None
        self._warned_nonfinite = False

    def run(self) -> str:
        """Train to the last step, or until somebody stops it."""
        spec = self.spec
        self.log.event("state", "running")
        batches = self.workload.data.batches(self.strategy.coordinates.dp, self.strategy.mesh.dp)
        outcome = "finished"
        for step in range(1, spec.steps + 1):
            self.progress.step = step
            watch = self.control.rider
            self.control.post(sum(observer.propose(step) for observer in self.observers))
            self._step(step, watch, batches)
            last = step == spec.steps
            stop = self._apply(self.control.take(), step) and not last
            if spec.eval_every and (last or stop or step % spec.eval_every == 0):
                self._evaluate(step)
            if stop:
                outcome = "stopped"
                break
        self._write_in_flight()
        self._enter("idle")
        return outcome

    def _step(self, step: int, watch: int, batches: Iterator[Batch]) -> None:
        """One optimizer step; its record is written now on a CPU, a step later on a GPU (no synchronisation)."""
        started = time.perf_counter()
        for observer in self.observers:
            observer.begins(step, watch)
        self._enter("data")
        batch = next(batches)
        data_wait = time.perf_counter() - started
        for observer in self.observers:
            observer.batch(step, batch)
        self._enter("forward_backward")
        with ExitStack() as around:
            for observer in self.observers:
                around.enter_context(observer.around(step))
            loss = self.strategy.forward_backward(split(batch, self.spec.accumulate))
        self._enter("optimizer")
        for observer in self.observers:
            observer.reduced(step)
        grad_sq = self.strategy.grad_sq()
        lr = float(self.workload.optimizer.param_groups[0]["lr"])
        updated = self.strategy.step()
        if updated and self.workload.lr_scheduler is not None:
            self.workload.lr_scheduler.step()
        for observer in self.observers:
            observer.updated(step, not updated)
        for observer in self.observers:
            observer.ends(step)
        self._write_in_flight()
        self._in_flight = _Measured(
            step=step,
            loss=loss,
            grad_sq=grad_sq,
            lr=lr,
            tokens=samples_in(batch) * self.workload.tokens_per_sample,
            step_time_ms=(time.perf_counter() - started) * 1e3,
            data_wait_ms=data_wait * 1e3,
            skipped=not updated,
            clip=self.spec.clip,
            monitor_ms=sum(observer.cost_ms for observer in self.observers),
        )
        if grad_sq.device.type == "cpu":
            self._write_in_flight()

    def _enter(self, phase: str) -> None:
        self.progress.phase = phase
        for observer in self.observers:
            observer.phase(phase)

    def _write_in_flight(self) -> None:
        if self._in_flight is None:
            return
        record = self._in_flight.record(self.strategy.rank)
        self._in_flight = None
        self.log.append(record)
        if not self._warned_nonfinite and self._has_bad_loss(record):
            self._warned_nonfinite = True
            self.log.event("warning", "nonfinite_loss", str(record.loss), step=record.step)

    def _has_bad_loss(self, record: StepRecord) -> bool:
        holds_loss = self.strategy.coordinates.pp == self.strategy.mesh.pp - 1
        return holds_loss and not math.isfinite(record.loss)

    def _apply(self, commands: list[Command], step: int) -> bool:
        """Apply agreed commands after ``step``; True when training should stop."""
        stop = False
        for command in commands:
            if command.name == "stop":
                stop = True
                self.log.event("control", "stop", command.who, step=step)
            else:
                self.log.event("warning", "unknown_command", command.name, step=step)
        return stop

    def _evaluate(self, step: int) -> None:
        if self.workload.evaluate is None:
            return
        self._enter("evaluate")
        found = self.workload.evaluate(self.strategy)
        if self.strategy.rank == 0:
            for name, value in found.values.items():
                self.log.event("validation", name, value, step=step)
            for text in found.texts:
                self.log.event("sample", "text", text, step=step)

"""The training loop of one rank. It reads as plain PyTorch: data, forward and backward, step, scheduler, records.

What differs between frameworks is behind ``Strategy``; what is observed goes to the rank log and never delays a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.config import TrainSpec
from workbench.core.frameworks import Capability
from workbench.core.records import EventKind, StepRecord
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.batch import Batch
from workbench.engine.base.capabilities import (
    Checkpointable,
    Evaluating,
    LossScaled,
    Normed,
    NormReporting,
    Pipelined,
    needed,
)
from workbench.engine.base.decision import GO, STOP
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Positioned, Workload
from workbench.engine.data.batches import samples_in, split, tokens_in
from workbench.engine.loop.schedule_ahead import check_schedule
from workbench.engine.loop.settings import Settings
from workbench.engine.loop.steering import Steering
from workbench.engine.watch.host.sampler import Progress
from workbench.errors import ConfigError
from workbench.rundir import checkpoints
from workbench.rundir.log import RankLogWriter

if TYPE_CHECKING:
    from workbench.engine.faults.nonfinite import NonfiniteGuard
    from workbench.engine.state.checkpoint import Checkpoints


@dataclass(slots=True)
class _Measured:
    """A finished step whose loss and squared norm (scalars of the framework; None: it has none) may still be on their
    way to the host."""

    step: int
    loss: Any
    grad_sq: Any
    lr: float
    tokens: int
    step_time_ms: float
    data_wait_ms: float
    skipped: bool
    loss_scale: float
    clip: float
    framework_norm: float
    monitor_ms: float

    def record(self, rank: int) -> StepRecord:
        return StepRecord(
            time=time.time(),
            step=self.step,
            rank=rank,
            loss=math.nan if self.loss is None else float(self.loss),
            lr=self.lr,
            grad_sq=math.nan if self.grad_sq is None else float(self.grad_sq),
            tokens=self.tokens,
            step_time_ms=self.step_time_ms,
            data_wait_ms=self.data_wait_ms,
            skipped=self.skipped,
            loss_scale=self.loss_scale,
            clip=self.clip,
            framework_norm=self.framework_norm,
            monitor_ms=self.monitor_ms,
        )


class Trainer:
    """Trains a prepared strategy for ``spec.steps`` steps, or until a stop is agreed.

    ``run()`` returns "finished" or "stopped". Every rank of the plan calls it at the same time. ``resume``: a
    checkpoint to begin from, of this run or another; then the first step is the one after it. ``on_host``: losses and
    norms can be read at once; otherwise (on a GPU) a step's are read a step later, and nothing waits for them.
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
        run: Path,
        observers: Sequence[StepObserver] = (),
        guard: NonfiniteGuard | None = None,
        resume: Path | None = None,
        on_host: bool = True,
    ) -> None:
        self.spec = spec
        self.workload = workload
        self.strategy = strategy
        self.control = control
        self.log = log
        self.progress = progress
        self.observers = observers if guard is None else [guard, *observers]
        self.guard = guard
        self._ended_by_guard = False
        self.settings = Settings(spec, workload, strategy, self.observers)
        self._run = run
        self._on_host = on_host
        self._normed = strategy if isinstance(strategy, Normed) else None
        self._reporting = strategy if isinstance(strategy, NormReporting) else None
        self._scaled = strategy if isinstance(strategy, LossScaled) else None
        self._pipelined = strategy if isinstance(strategy, Pipelined) else None
        self._evaluates = bool(spec.eval_every and workload.evaluate is not None and isinstance(strategy, Evaluating))
        self.steering = Steering(settings=self.settings, loop=self, control=control, log=log, enter=self._enter)
        self._resume = resume
        self._batches: Iterator[Batch] = iter(())
        self._consumed = 0
        self._in_flight: _Measured | None = None
        self._unlogged: StepRecord | None = None
        self._threads_s = log.cost_s + progress.threads_s
        self._warned_nonfinite = False
        self._scale: float | None = None
        self._warned_schedule = False
        self._warned_state = False
        self._saves_at_end = spec.final_checkpoint and isinstance(strategy, Checkpointable)
        self._saved = -1  # the step of the newest checkpoint of this run

    def run(self) -> str:
        """Train to the last step, or until somebody stops it."""
        step = self.begin()
        self.log.event(EventKind.STATE, "running", step=step)
        self.steering.declare_knobs(step)
        self.steering.tell_in_force(step)
        outcome = "finished"
        while step < self.spec.steps:
            step += 1
            self.take_step(step)
            evaluated = self._scheduled(step)
            here = self.steering.boundary(step)
            step = here.step
            stop = here.stop or self._ended_by_guard
            if stop and step < self.spec.steps:
                outcome = "stopped"
                if self._evaluates and not evaluated:
                    self.evaluate(step)
            if stop:
                self._saves_at_end &= here.saves
                break
        if self._saves_at_end and self._saved != step:
            self.save(step, asked=False)
        self._write_in_flight()
        if self._unlogged is not None:
            self.log.append(self._unlogged)
        self.steering.end(step)
        self._enter("idle")
        return outcome

    def begin(self) -> int:
        """Make the data ready, from a checkpoint if there is one to go on from; the step that is done already."""
        rates = [float(group["lr"]) for group in self.workload.optimizer.param_groups]
        if self.spec.lr is not None and not self.spec.recipe and len(set(rates)) > 1:
            text = f"--lr is the first parameter group's; the others keep their ratio to it: {rates}"
            self.log.event(EventKind.WARNING, "lr_of_groups", text)
        if self._resume is not None:
            step = self._restore(self._resume)
            before = self.settings.lr.now
            if self.settings.follow_spec():
                after = {"lr": self.settings.lr.now}
                self.log.event(EventKind.CHECKPOINT, "resumed_with", after, step=step, old_value={"lr": before})
            self._check_schedule(step)
            return step
        self._check_schedule(0)
        self._batches = self._batches_from(0)
        return 0

    def _check_schedule(self, done: int) -> None:
        scheduler = self.workload.lr_scheduler
        if scheduler is None or self.spec.recipe:
            return
        warning = check_schedule(self.workload.optimizer, scheduler, done, self.spec.steps)
        if warning and self.spec.lr is None:
            self.log.event(EventKind.WARNING, "schedule_ended", warning, step=done)

    def _batches_from(self, number: int) -> Iterator[Batch]:
        self._consumed = number
        here, mesh = self.strategy.coordinates, self.strategy.mesh
        if not number:
            return self.workload.data.batches(here.dp, mesh.dp)
        return self.workload.data.batches(here.dp, mesh.dp, number)

    def _scheduled(self, step: int) -> bool:
        """Evaluate and save when they are due; whether it was evaluated."""
        due = self._evaluates and (step == self.spec.steps or step % self.spec.eval_every == 0)
        if due:
            self.evaluate(step)
        if self.spec.save_every and step % self.spec.save_every == 0:
            self.save(step, asked=False)
        return due

    def take_step(self, step: int) -> None:
        """One step of ``run``, without what comes between steps (``steering.boundary`` is due after it)."""
        self.progress.step = step
        watch = self.control.rider
        self.control.post(sum(observer.propose(step) for observer in self.observers))
        self._step(step, watch)

    def _step(self, step: int, watch: int) -> None:
        """One optimizer step; its record is written now, or a step later where reading it would wait for the device."""
        started = time.perf_counter()
        for observer in self.observers:
            observer.begins(step, watch)
        self._enter("data")
        batch = next(self._batches)
        self._consumed += 1
        self.settings.share = samples_in(batch)
        data_wait = time.perf_counter() - started
        for observer in self.observers:
            observer.batch(step, batch)
        self._enter("forward_backward")
        with ExitStack() as around:
            for observer in self.observers:
                around.enter_context(observer.around(step))
            loss = self.strategy.forward_backward(split(batch, self.settings.accumulate))
        self._enter("optimizer")
        for observer in self.observers:
            observer.reduced(step)
        began = time.perf_counter()
        grad_sq = self._normed.grad_sq() if self._normed is not None else None
        norm_ms = (time.perf_counter() - began) * 1e3
        lr = self.settings.lr.now
        loss_scale = self._loss_scale(step)
        verdict = GO if self.guard is None else self._judged(step, loss, grad_sq)
        self._ended_by_guard = verdict == STOP
        updated = self._update(verdict)
        if updated:
            self.settings.lr.advance()
        for observer in self.observers:
            observer.updated(step, not updated)
        for observer in self.observers:
            observer.ends(step)
        cost_ms = self._cost_ms(0.0 if self.guard is not None or self.settings.clip else norm_ms)  # who else needs it
        for observer in self.observers:
            observer.accounted(step, cost_ms)
        self._write_in_flight()
        self._in_flight = _Measured(
            step=step,
            loss=loss,
            grad_sq=grad_sq,
            lr=lr,
            tokens=tokens_in(batch, self.workload.tokens_per_sample),
            step_time_ms=(time.perf_counter() - started) * 1e3,
            data_wait_ms=data_wait * 1e3,
            skipped=not updated,
            loss_scale=loss_scale,
            clip=self.settings.clip,
            framework_norm=self._reporting.framework_norm() if self._reporting is not None else math.nan,
            monitor_ms=cost_ms,
        )
        if self._on_host:
            self._write_in_flight()

    def _cost_ms(self, own_ms: float) -> float:
        """What watching the step cost: the trainer's own part, that of the observers, and of the threads that write the
        log and sample the device, which take the interpreter from training. The guard, and what it needs, is part of
        training: it is there whatever is watched."""
        before, self._threads_s = self._threads_s, self.log.cost_s + self.progress.threads_s
        watching_ms = sum(observer.cost_ms for observer in self.observers if observer is not self.guard)
        return own_ms + (self._threads_s - before) * 1e3 + watching_ms

    def _loss_scale(self, step: int) -> float:
        """The loss scale in force (1: none); a change is an event."""
        scale = self._scaled.loss_scale() if self._scaled is not None else 1.0
        if self._scale not in (None, scale):
            self.log.event(EventKind.LOSS_SCALE, "changed", scale, step=step, old_value=self._scale)
        self._scale = scale
        return scale

    def _judged(self, step: int, loss: Any, grad_sq: Any) -> str:
        assert self.guard is not None
        self.guard.accumulate = self.settings.accumulate
        return self.guard.decide(step, loss, grad_sq)

    def _update(self, verdict: str) -> bool:
        if verdict == GO:
            return self.strategy.step()
        self.strategy.skip()
        return False

    def _enter(self, phase: str) -> None:
        self.progress.phase = phase
        for observer in self.observers:
            observer.phase(phase)

    def _write_in_flight(self) -> None:
        if self._in_flight is None:
            return
        record = self._in_flight.record(self.strategy.rank)
        self._in_flight = None
        if record.step % self.settings.log_every == 0:
            self._unlogged = None
            self.log.append(record)
        else:
            self._unlogged = record
        if not self._warned_nonfinite and self._has_bad_loss(record):
            self._warned_nonfinite = True
            self.log.event(EventKind.WARNING, "nonfinite_loss", str(record.loss), step=record.step)

    def _has_bad_loss(self, record: StepRecord) -> bool:
        has_loss = self._pipelined is None or self._pipelined.has_loss()
        return has_loss and not math.isfinite(record.loss)

    def evaluate(self, step: int) -> None:
        """Evaluate, on all ranks; rank 0 logs what was found. ``ConfigError`` when there is nothing to do it with."""
        if self.workload.evaluate is None:
            raise ConfigError(
                "this training has nothing to evaluate with: define eval_dataset or eval_dataloader in the cell"
            )
        self._enter("evaluate")
        found = self.workload.evaluate(self._evaluating())
        if self.strategy.rank == 0:
            for name, value in found.values.items():
                self.log.event(EventKind.VALIDATION, name, value, step=step)
            for text in found.texts:
                self.log.event(EventKind.SAMPLE, "text", text, step=step)

    def _evaluating(self) -> Evaluating:
        return needed(self.strategy, Evaluating, Capability.EVALUATING)

    def sample(self, step: int) -> None:
        """Let the model write, on all ranks; rank 0 logs it. ``ConfigError`` when it writes nothing."""
        is_cell = self.workload.cell_state is not None
        if self.workload.sample is None and (is_cell or self.workload.evaluate is None):
            raise ConfigError("this training has no samples: define sample(model) in the cell")
        self._enter("evaluate")
        if self.workload.sample is not None:
            texts = self.workload.sample(self._evaluating())
        else:
            texts = self.workload.evaluate(self._evaluating()).texts  # type: ignore[misc]
        if self.strategy.rank == 0:
            for text in texts:
                self.log.event(EventKind.SAMPLE, "text", text, step=step)

    def checkpoints(self) -> Checkpoints:
        """What writes and reads them. ``ConfigError`` where the strategy has none."""
        from workbench.engine.state.checkpoint import Checkpoints

        needed(self.strategy, Checkpointable, Capability.CHECKPOINTABLE)
        return Checkpoints(self._run, self.strategy, self.control, self.log, self.spec.keep, self.workload.cell_state)

    def save(self, step: int, *, asked: bool) -> bool:
        """Write a checkpoint; whether it is there."""
        files = self.checkpoints()
        self._enter("checkpoint")
        self._write_in_flight()
        settings, left_out = self.settings.state()
        if left_out and not self._warned_schedule:
            self._warned_schedule = True
            self.log.event(EventKind.WARNING, "schedule_not_saved", f"lr_scheduler: {', '.join(left_out)}", step=step)
        state = {"step": step, "batches": self._consumed, "settings": settings}
        if isinstance(self.workload.data, Positioned):
            state["position"] = self.workload.data.position(self._consumed)
        is_saved = files.save(step, state, asked=asked)
        if is_saved:
            self._saved = step
        beside = self.workload.cell_state
        if beside is not None and beside.left_out and not self._warned_state:
            self._warned_state = True
            names = ", ".join(beside.left_out)
            text = (
                f"checkpoints do not hold the cell's variables {names}: state = [...] in the cell names what they hold"
            )
            self.log.event(EventKind.WARNING, "state_not_saved", text, step=step)
        return is_saved

    def rollback(self, step: int, target: int | str) -> int:
        """Load a checkpoint of this run into the ranks as they are; the step it is of."""
        path = checkpoints.find(self._run, target)
        if isinstance(self.workload.data, Positioned):
            self.workload.data.check_repeatable()
        self._enter("checkpoint")
        self._write_in_flight()
        self._saved = self._restore(path)
        return self._saved

    def _restore(self, path: Path) -> int:
        state = self.checkpoints().restore(path, prepare=self._prepare)
        self.settings.restore(state["settings"])
        step = int(state["step"])
        self.progress.step = step
        self._unlogged = None
        for observer in self.observers:
            observer.rolled_back(step)
        self.log.event(EventKind.CHECKPOINT, "restored", {"path": str(path), "rows": self.log.taken()}, step=step)
        return step

    def _prepare(self, state: dict[str, Any]) -> None:
        """Make the data ready where a checkpoint was saved; one without ``position`` counts batches of this size."""
        number, data = int(state["batches"]), self.workload.data
        if "position" in state and isinstance(data, Positioned):
            data.begin_at(state["position"], number)
        self._batches = self._batches_from(number)

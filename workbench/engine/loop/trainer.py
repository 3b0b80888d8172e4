"""The training loop of one rank. It reads as plain PyTorch: data, forward and backward, step, scheduler, records.

What differs between frameworks is behind ``Strategy``; what is observed goes to the rank log and never delays a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.config import TrainSpec
from workbench.core.live import rank_row
from workbench.core.records import Command, EventKind
from workbench.core.rules.intervals import epochs_in, is_due
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.capabilities import Checkpointable, LossScaled, Normed, NormReporting, Pipelined
from workbench.engine.base.decision import GO, STOP
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Positioned, Workload
from workbench.engine.data.batches import samples_in, split, tokens_in
from workbench.engine.loop.epochs import EpochReader
from workbench.engine.loop.evaluating import Evaluations
from workbench.engine.loop.following import Following
from workbench.engine.loop.hooks import may_draw
from workbench.engine.loop.saving import Saving
from workbench.engine.loop.schedule_ahead import check_schedule
from workbench.engine.loop.settings import Settings
from workbench.engine.loop.snapshots import Snapshots
from workbench.engine.loop.steering import Steering
from workbench.engine.loop.step_rows import Measured, StepRows
from workbench.engine.watch.host.sampler import Progress
from workbench.rundir import checkpoints
from workbench.rundir.log import RankLogWriter

if TYPE_CHECKING:
    from workbench.engine.faults.nonfinite import NonfiniteGuard


class Trainer:
    """Trains a prepared strategy for ``spec.steps`` steps or ``spec.epochs`` epochs, or until a stop is agreed.

    ``run()`` returns "finished" or "stopped"; ``reason`` says why it finished before its last step. Every rank of the
    plan calls it at the same time. ``resume``: a checkpoint to begin from, of this run or another; then the first step
    is the one after it. ``snapshots``: the directory in memory for copies of the state. ``repeated``: commands of
    before a restart, each with the step after which it took effect: they do so again. ``on_host``: losses and norms can
    be read at once; otherwise (on a GPU) a step's are read a step later, and nothing waits for them.
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
        snapshots: Path | None = None,
        repeated: Sequence[tuple[int, Command]] = (),
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
        self._normed = strategy if isinstance(strategy, Normed) else None
        self._reporting = strategy if isinstance(strategy, NormReporting) else None
        self._scaled = strategy if isinstance(strategy, LossScaled) else None
        self._pipelined = strategy if isinstance(strategy, Pipelined) else None
        self.steering = Steering(
            settings=self.settings, loop=self, control=control, log=log, enter=self._enter, repeated=repeated
        )
        self._resume = resume
        has_loss = self._pipelined is None or self._pipelined.has_loss()
        self._rows = StepRows(log, strategy.rank, on_host=on_host, has_loss=has_loss)
        self._evaluations = Evaluations(workload, strategy, control, log, self._enter)
        self._evaluates = bool(spec.eval_every) and self._evaluations.can_evaluate
        self._saving = Saving(run, workload, strategy, control, log)
        self._snapshots = Snapshots(snapshots, spec.snapshot_every, self._saving, log)
        self._following = Following(spec, workload, self.settings.lr, strategy)
        intervals = spec.epochs or epochs_in(spec.eval_every) or epochs_in(spec.save_every)
        self._counts_epochs = bool(intervals) or self._following.follows_epochs
        here, mesh = strategy.coordinates, strategy.mesh
        self._reader = EpochReader(workload.data, here.dp, mesh.dp, exact=self._counts_epochs)
        self._read_ahead_s = 0.0
        self._loss: Any = None
        self._lr, self._skipped = 0.0, False
        self._threads_s = log.cost_s + progress.threads_s
        self._scale: float | None = None
        self._draws_in_updates = may_draw(workload.optimizer)
        self._saves_at_end = spec.final_checkpoint and isinstance(strategy, Checkpointable)

    @property
    def reason(self) -> str:
        """Why the training finished before its last step; "" if it did not."""
        return self._following.reason

    def run(self) -> str:
        """Train to the last step, or until a rule or somebody stops it."""
        try:
            return self._train()
        except BaseException:
            rank_row.note_failing()  # what follows takes a while, in which nobody ends this rank
            raise
        finally:
            self._saving.close()
            self._snapshots.close()

    def _train(self) -> str:
        step = self.begin()
        self.log.event(EventKind.STATE, "running", step=step)
        self.steering.declare_knobs(step)
        self.steering.begin(step)
        self.steering.tell_settings(step)
        outcome = "finished"
        while not self._is_last(step):
            step += 1
            self.take_step(step)
            evaluated = self._scheduled(step)
            here = self.steering.boundary(step)
            step = here.step
            stop = here.stop or self._ended_by_guard
            if stop and not self._is_last(step):
                outcome = "stopped"
                if self._evaluates and not evaluated:
                    self._saving.save_if_best(step, self._evaluated(step), self._state_of(step))
            if stop:
                self._saves_at_end &= here.saves
                break
        self._saving.finish()
        if self._saves_at_end and self._saving.saved != step:
            self.save(step, asked=False)
        self._rows.end(self.settings.log_every)
        self.steering.end(step)
        self._enter("idle")
        return outcome

    def _is_last(self, step: int) -> bool:
        spec = self.spec
        ended = 0 < spec.steps <= step or 0 < spec.epochs <= self._reader.done
        return ended or bool(self.reason)

    def begin(self) -> int:
        """Make the data ready, from a checkpoint if there is one to go on from; the step that is done already."""
        rates = [float(group["lr"]) for group in self.workload.optimizer.param_groups]
        if self.spec.lr is not None and not self.spec.recipe and len(set(rates)) > 1:
            text = f"--lr is the first parameter group's; the others keep their ratio to it: {rates}"
            self.log.event(EventKind.WARNING, "lr_of_groups", text)
        step = 0
        if self._resume is not None:
            step = self._restore(self._resume)
            before = self.settings.lr.now
            is_ours = self._resume.parent.parent in (self._run, self._snapshots.place)
            if not is_ours and self.settings.follow_spec():
                after = {"lr": self.settings.lr.now}
                self.log.event(EventKind.CHECKPOINT, "resumed_with", after, step=step, old_value={"lr": before})
        else:
            self._reader.begin(0)
            self._tell_epochs("epochs", step)
        self._saving.begin(self._resume, step)
        self._check_schedule(step)
        return step

    def _check_schedule(self, done: int) -> None:
        """Try the schedule on the steps or epochs to come, if they are known."""
        scheduler, unit = self.workload.lr_scheduler, self.workload.schedule_every
        if scheduler is None or self.spec.recipe or self.workload.schedule_metric:
            return
        last = self._last_step(done) if unit == "step" else self.spec.epochs
        done = done if unit == "step" else self._reader.done
        warning = check_schedule(self.workload.optimizer, scheduler, done, last, unit) if last else ""
        if warning and self.spec.lr is None:
            self.log.event(EventKind.WARNING, "schedule_ended", warning, step=done)

    def _last_step(self, step: int) -> int | None:
        """The step after which the training ends by itself; None where only reading the data tells."""
        spec = self.spec
        through = self._reader.steps_through(spec.epochs) if spec.epochs else None
        ends = [end for end in (spec.steps or None, None if through is None else step + through) if end is not None]
        return min(ends) if ends else None

    def _tell_epochs(self, name: str, step: int) -> None:
        if self._counts_epochs and self.strategy.rank == 0:
            reader = self._reader
            value = {"epochs": self.spec.epochs, "steps_per_epoch": reader.length, "done": reader.progress}
            left = reader.steps_through(self.spec.epochs) if self.spec.epochs else None
            value |= {"steps": self._last_step(step), "end_of_epochs": None if left is None else step + left}
            self.log.event(EventKind.DATA, name, value, step=step)

    def _scheduled(self, step: int) -> bool:
        """What is due after a step: hooks, rules, evaluation, schedule, checkpoint; whether it was evaluated."""
        self._tell_loss(step)
        began = time.perf_counter()
        epoch_ended = self._reader.look_ahead()
        self._read_ahead_s = time.perf_counter() - began
        done = self._reader.done
        due = self._is_last(step) or is_due(self.spec.eval_every, step, done, epoch_ended=epoch_ended)
        due &= self._evaluates
        if due:
            self._following.evaluated(step, self._evaluated(step))
        if epoch_ended:
            self._following.epoch_ended(done, step)
            self._tell_epochs("epoch", step)
        if due:
            self._saving.save_if_best(step, self._following.values, self._state_of(step))
        if is_due(self.spec.save_every, step, done, epoch_ended=epoch_ended):
            self._saving.begin_save(step, *self._state_of(step)())
        self._snapshots.take_if_due(step, self._state_of(step))
        return due

    def _tell_loss(self, step: int) -> None:
        """Tell who follows it the loss of the global batch, which the guard has summed over ranks in any case."""
        if not self._following.follows_losses:
            return
        if self.guard is not None:
            loss = self.guard.loss
        else:
            own = 0.0 if self._loss is None else float(self._loss)
            total, ranks = self.control.summed(own, float(self._loss is not None))
            loss = total / ranks
        epoch = self._reader.progress
        self._following.stepped(step, loss, lr=self._lr, skipped=self._skipped, epoch=epoch)

    def _evaluated(self, step: int) -> dict[str, Any]:
        """The values of an evaluation that is due, alike on all ranks, if something follows them."""
        values = self._evaluations.evaluate(step)
        return self._evaluations.agreed(values) if self._following.follows_evaluations else {}

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
        batch = next(self._reader)
        self.settings.share = samples_in(batch)
        data_wait = time.perf_counter() - started + self._read_ahead_s
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
        self._rows.flush(self.settings.log_every)
        self._loss, self._lr, self._skipped = loss, lr, not updated
        measured = Measured(
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
        self._rows.add(measured, self.settings.log_every)

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
        if verdict == GO and self._draws_in_updates:
            with self.strategy.alike("update"):
                return self.strategy.step()
        if verdict == GO:
            return self.strategy.step()
        self.strategy.skip()
        return False

    def _enter(self, phase: str) -> None:
        self.progress.phase = phase
        for observer in self.observers:
            observer.phase(phase)

    def evaluate(self, step: int) -> None:
        """Evaluate because it was asked for: rules, schedule and best checkpoint follow only what is due."""
        self._evaluations.evaluate(step)

    def sample(self, step: int) -> None:
        """Let the model write, on all ranks; rank 0 logs it. ``ConfigError`` when it writes nothing."""
        self._evaluations.sample(step)

    def save(self, step: int, *, asked: bool) -> bool:
        """Write a checkpoint; whether it is there."""
        return self._saving.save(step, *self._state_of(step)(), asked=asked)

    def _state_of(self, step: int) -> Callable[[], tuple[dict[str, Any], list[str]]]:
        """Makes what a checkpoint holds beside weights, and the names of what it cannot hold of the schedule."""

        def state() -> tuple[dict[str, Any], list[str]]:
            self._enter("checkpoint")
            self._rows.flush(self.settings.log_every)
            self.log.flush()  # whoever goes on from here misses no row before it
            settings, left_out = self.settings.state()
            found = {"step": step, "batches": self._reader.consumed, "settings": settings}
            if self._counts_epochs:
                found["epochs"] = self._reader.done
            if isinstance(self.workload.data, Positioned):
                found["position"] = self.workload.data.position(self._reader.consumed)
            return {**found, "followed": self._following.state()}, left_out

        return state

    def rollback(self, step: int, target: int | str) -> int:
        """Load a checkpoint of this run into the ranks as they are; the step it is of."""
        self._saving.finish()
        self._snapshots.forget()
        path = checkpoints.find(self._run, target)
        if isinstance(self.workload.data, Positioned):
            self.workload.data.check_repeatable()
        self._enter("checkpoint")
        self._rows.flush(self.settings.log_every)
        restored = self._restore(path)
        self._saving.saved = restored if path == checkpoints.directory(self._run, restored) else -1
        return restored

    def _restore(self, path: Path) -> int:
        state = self._saving.restore(path, self._prepare)
        self.settings.restore(state["settings"])
        step = int(state["step"])
        self.progress.step = step
        self._rows.forget()
        self._following.restore(state.get("followed", {}))
        for observer in self.observers:
            observer.rolled_back(step)
        self.log.event(EventKind.CHECKPOINT, "restored", {"path": str(path), "rows": self.log.taken()}, step=step)
        self._tell_epochs("epochs", step)
        return step

    def _prepare(self, state: dict[str, Any]) -> None:
        """Make the data ready where a checkpoint was saved; one without ``position`` counts batches of this size."""
        number, data = int(state["batches"]), self.workload.data
        if "position" in state and isinstance(data, Positioned):
            warning = data.begin_at(state["position"], number)
            if warning:
                self.strategy.tell("other_data", warning)
        self._read_ahead_s = 0.0
        self._reader.begin(number, state.get("epochs"))

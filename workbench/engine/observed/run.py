"""An observed training: hooks on a loop that is not ours, and ``step`` once per optimizer step, make the records."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch

from workbench.core import background
from workbench.core.config import TrainSpec
from workbench.core.records import EventKind
from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import counts_tokens, samples_in, tokens_in
from workbench.engine.observed.agreement import ObservedControl
from workbench.engine.observed.costs import Costs
from workbench.engine.observed.engine import Engine
from workbench.engine.observed.hooks import LoopHooks
from workbench.engine.observed.loss import value_of
from workbench.engine.observed.model import ObservedModel
from workbench.engine.observed.recording import RankRecording
from workbench.engine.observed.steered import NoData, ObservedSettings, ObservedSteering, OnCheckpoint, OwnCheckpoints
from workbench.engine.observed.step_norm import StepNorm
from workbench.engine.observed.step_rows import StepRows
from workbench.engine.watch.torch.gradient_watch import GradientWatch
from workbench.engine.watch.torch.phases import add_phase_watch
from workbench.errors import ConfigError

#: optimizer steps without ``step``, or calls of ``step`` without one of the optimizer, after which it is said
_ODD = 8


class RunStopped(BaseException):
    """Somebody stopped the run: ``run.step`` raises it, and the end of ``with workbench.observe(...)`` takes it."""


class ObservedRun:
    """What ``workbench.observe`` gives. Use it as a context manager, or ``close`` it. ``path``: the run directory."""

    def __init__(
        self,
        recording: RankRecording,
        spec: TrainSpec,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        engine: Engine | None,
        exchange: Exchange,
        timeout_s: float,
        scaler: Any = None,
        on_checkpoint: OnCheckpoint | None = None,
        steps_before: int = 0,
    ) -> None:
        self.path = recording.path
        self.spec = spec
        self.rank = rank = recording.rank
        self.steps = self._steps_before = steps_before
        self._process = os.getpid()
        self._scaler = scaler
        self._model = ObservedModel(spec, rank, model, optimizer, engine=engine, scale=self._loss_scale)
        self._on_host = self._model.device.type == "cpu"
        self._recording = recording
        self._log, self._progress = recording.log, recording.progress
        recording.watch_device(str(self._model.device))
        self._control = ObservedControl(self.path, exchange, timeout_s=timeout_s, tell=self._tell_apart)
        self._norm = StepNorm(spec.monitor, self._model)
        self._observers = self._made_observers()
        workload = Workload(model=self._model.model, optimizer=optimizer, data=NoData())
        self._settings = ObservedSettings(spec, workload, self._model, self._observers)  # type: ignore[arg-type]
        self._settings.follow(optimizer)
        own = OwnCheckpoints(self._log, on_checkpoint, self._enter)
        self._steering = ObservedSteering(
            settings=self._settings, loop=own, control=self._control, log=self._log, enter=self._enter
        )
        self._told: set[str] = set()
        self._rows = StepRows(self._log, self._settings, self.tell_once)
        self._costs = Costs(self._log, self._progress)
        self._unstepped = self._uncounted = 0
        self._pieces_before = 0
        self._around = ExitStack()
        self._closed = False
        self._in_step = False
        self._hooks = LoopHooks(
            self,
            self._model.wrapper,
            failed=self._watch_no_more,
            reduces=spec.plan.ranks > 1,
            engine=engine,
        )
        self._begin()

    def _made_observers(self) -> list[StepObserver]:
        if self.spec.monitor.level == "off":
            return []
        gradients: list[StepObserver] = []
        if self._model.seen.gradients:
            gradients = [self._norm, GradientWatch(self.spec, self._model, self._log, self._model.device)]
        return add_phase_watch(self.spec.monitor, self._model, self._log, self._model.device.type, gradients)

    def _begin(self) -> None:
        self._log.event(EventKind.STATE, "running")
        self._steering.tell_settings(0)
        if self._model.seen.unseen:
            self.tell_once("not_seen", self._model.seen.unseen)
        if self._model.engine is not None and self._model.engine.fault():
            self.tell_once("loss_scale_lost", self._model.engine.fault())
        if not self._hooks.sees_clipping:
            self.tell_once("clipping_not_seen", "torch before 2.6: gradients are seen after clipping")
        self._begin_step()

    # the loop, as hooks tell it

    def _begin_step(self) -> None:
        watch = self._control.rider
        self._progress.step = step = self.steps + 1
        self._control.post(sum(observer.propose(step) for observer in self._observers))
        self._began = time.perf_counter()
        self._data_s: float | None = None
        self._losses: list[torch.Tensor] = []
        self._pieces = self._samples = self._tokens = 0
        self._stepped = self._reduced = False
        self._grad_sq: torch.Tensor | None = None
        self._rate = self._settings.lr.now
        self._scale = 1.0
        self._model.begin()
        for observer in self._observers:
            observer.begins(step, watch)
        self._enter("data")
        self._around = ExitStack()
        for observer in self._observers:
            self._around.enter_context(observer.around(step))
        self._in_step = True

    def _enter(self, phase: str) -> None:
        self._progress.phase = phase
        for observer in self._observers:
            observer.phase(phase)

    def _mark(self, phase: str) -> None:
        self._progress.phase = phase
        more = self._pieces > 1 or self._pieces_before > 1
        self._model.mark(phase, self._pieces - 1 if more and phase in ("forward", "backward") else -1)

    def forward_begins(self, batch: Any, training: bool) -> None:
        """As ``LoopListener.forward_begins``."""
        if not self._in_step:
            return
        if not training:
            self._mark("evaluate")
            return
        if self._data_s is None:
            self._data_s = time.perf_counter() - self._began
        self._pieces += 1
        self._mark("forward")
        with contextlib.suppress(ConfigError, TypeError, AttributeError):  # a batch of another kind is not counted
            data = batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch
            self._samples += samples_in(data)
            self._tokens += tokens_in(data, None)
            self._counts_tokens = counts_tokens(data, None)

    def forward_ends(self, output: Any, training: bool) -> None:
        """As ``LoopListener.forward_ends``."""
        if self._in_step and not training:
            self._mark("data")

    def backward_begins(self, loss: torch.Tensor) -> None:
        """As ``LoopListener.backward_begins``."""
        if self._in_step:
            self._mark("backward")
            if loss.numel() == 1:
                scale = self._loss_scale()
                self._losses.append(loss.detach() if scale == 1.0 else loss.detach() / scale)

    def backward_computed(self) -> None:
        """As ``LoopListener.backward_computed``."""
        if self._in_step:
            self._mark("communication")

    def backward_ends(self) -> None:
        """As ``LoopListener.backward_ends``."""
        if self._in_step:
            self._mark("optimizer" if self._pieces >= self._pieces_before else "data")

    def clips(self, parameters: list[torch.Tensor], norm: torch.Tensor | None) -> None:
        """As ``LoopListener.clips``."""
        if self._in_step and not self._reduced:
            self._norm.clips(parameters, norm)
            self._see_reduced()

    def _see_reduced(self) -> None:
        """Gradients are reduced, and neither clipped nor used yet."""
        if not self._in_step or self._reduced:
            return
        self._reduced = True
        self._around.close()
        for observer in self._observers:
            observer.reduced(self._progress.step)
        self._grad_sq = self._norm.squared()

    def optimizer_begins(self, optimizer: torch.optim.Optimizer | None, computed: bool = True) -> None:
        """As ``LoopListener.optimizer_begins``."""
        optimizer = optimizer or self._model.optimizer
        if not self._in_step:
            return
        if optimizer is not self._model.optimizer and not self._adopts(optimizer):
            return
        self._scale = self._loss_scale()
        if computed:
            self._mark("optimizer")
            self._see_reduced()
        self._settings.lr.begin()
        self._rate = self._settings.lr.now

    def closure_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """As ``LoopListener.closure_ends``."""
        if optimizer is self._model.optimizer:
            self._see_reduced()

    def optimizer_ends(self, optimizer: torch.optim.Optimizer | None) -> None:
        """As ``LoopListener.optimizer_ends``."""
        if not self._in_step or optimizer not in (None, self._model.optimizer):
            return
        if self._model.engine is not None:
            self._grad_sq = self._norm.told(self._model.engine.norm(), self._grad_sq)
        self._settings.lr.end()
        if not self._stepped:
            for observer in self._observers:
                observer.updated(self._progress.step, False)
        self._mark("optimizer")
        self._stepped = True
        self._uncounted += 1
        if self._uncounted == _ODD:
            text = f"the optimizer stepped {_ODD} times and run.step was not called: call it once after each step"
            self.tell_once("step_not_called", text)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one that is observed now."""
        return self._model.optimizer

    def _adopts(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether ``optimizer`` has taken the place of the observed one: it updates the same parameters."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if self._stepped or not held & self._model.ids:
            return False
        before = type(self._model.optimizer).__name__
        self._model.choose(optimizer)
        self._settings.follow(optimizer)
        text = (
            f"the observed {before} was replaced by another optimizer ({type(optimizer).__name__}) of the same "
            "parameters: it is observed from now on, and what was set by hand is forgotten"
        )
        self._log.event(EventKind.WARNING, "optimizer_swapped", text, step=self._progress.step)
        return True

    def _watch_no_more(self, error: Exception) -> None:
        """A hook failed, and no other will tell anything: steps, losses and commands go on."""
        text = f"{background.described(error)}: phases and gradients are not watched any more; training goes on"
        self._log.event(EventKind.WARNING, "hook_failed", f"{text}\n{background.traceback_of(error)}",
                        step=self._progress.step)  # fmt: skip
        print(f"workbench: {text}", file=sys.stderr, flush=True)
        self._in_step = False
        self._around = ExitStack()
        self._observers.clear()

    def _loss_scale(self) -> float:
        if self._model.engine is not None:
            return self._model.engine.loss_scale()
        return float(self._scaler.get_scale()) if self._scaler is not None and self._scaler.is_enabled() else 1.0

    # the script's own calls

    def step(self, loss: Any = None, *, samples: int | None = None, tokens: int | None = None) -> None:
        """An optimizer step is done: log it and apply what was asked for. Call it on every rank.

        ``loss``: of this rank's share of the batch, a number or a tensor of one element; None: the sum of the losses
        that ``backward`` was called on. ``samples``, ``tokens``: of this rank's share; None: as the arguments of the
        model show. Stays here while the run is paused. Raises ``RunStopped`` when it is to end, which leaves the
        ``with`` block; ``ConfigError`` for a loss that is no number.
        """
        if self.advance(loss, samples=samples, tokens=tokens):
            raise RunStopped

    def advance(self, loss: Any = None, *, samples: int | None = None, tokens: int | None = None) -> bool:
        """As ``step``, for loops that end by themselves: whether the run is to end."""
        if self._closed:
            raise ConfigError("run.step: this run has ended: call workbench.observe again to start another")
        value = value_of(loss, self._losses)
        with self._costs:
            self._end_step(value, samples, tokens)
        here = self._steering.boundary(self.steps)
        if here.stop:
            self.close("stopped")
            return True
        with self._costs:
            self._begin_step()
        return False

    def _end_step(self, loss: Any, samples: int | None, tokens: int | None) -> None:
        if not self._stepped:
            self._see_reduced()  # observers see gradients before they are told that nothing was done with them
        self._in_step = False
        self.steps += 1
        step = self.steps
        self._uncounted = 0
        if not self._stepped:
            for observer in self._observers:
                observer.updated(step, True)
        self._tell_odd()
        self._model.mark("monitor", -1)
        for observer in self._observers:
            observer.ends(step)
        cost_ms = self._costs.take(self._hooks.spent_s, self._observers)
        for observer in self._observers:
            observer.accounted(step, cost_ms)
        self._pieces_before = self._pieces
        samples = self._samples if samples is None else samples
        tokens = (self._tokens or samples) if tokens is None else tokens
        if step == self._steps_before + 1 and self.rank == 0 and samples:
            unit = "tokens" if tokens != samples else "samples"
            value = {"samples": samples * self.spec.plan.mesh.dp, "unit": unit}
            self._log.event(EventKind.DATA, "batch", value, step=step)
        self._rows.write()
        values = dict(
            time=time.time(),
            step=step,
            rank=self.rank,
            lr=self._rate,
            tokens=tokens,
            step_time_ms=(time.perf_counter() - self._began) * 1e3,
            data_wait_ms=(self._data_s or 0.0) * 1e3,
            skipped=not self._stepped,
            loss_scale=self._scale,
            clip=0.0,
            framework_norm=math.nan,
            monitor_ms=cost_ms,
        )
        self._rows.keep(values, loss, self._grad_sq)
        if self._on_host:
            self._rows.write()

    def _tell_odd(self) -> None:
        self._unstepped = 0 if self._stepped else self._unstepped + 1
        if self._unstepped == _ODD:
            self.tell_once("optimizer_not_stepped",
                       f"run.step was called {_ODD} times and the observed {type(self._model.optimizer).__name__} did "
                       "not step: call it once per optimizer.step(), and observe the optimizer that steps")  # fmt: skip

    def tell_once(self, name: str, text: str) -> None:
        """Log the warning ``name`` unless it was logged before."""
        if name not in self._told:
            self._told.add(name)
            self._log.event(EventKind.WARNING, name, text, step=self._progress.step)

    def _tell_apart(self, why: str) -> None:
        text = f"{why}: call run.step on every rank, the same number of times. Training goes on; it is not steered now"
        self._log.event(EventKind.WARNING, "ranks_apart", text, step=self._progress.step)

    # the end

    def close(self, state: str = "finished", error: BaseException | None = None, *, others_come: bool = True) -> None:
        """End the run: take the hooks off, write what is left. ``error``: it failed of this. ``others_come``: the other
        ranks end their runs now too."""
        if self._closed or os.getpid() != self._process:  # a child of a fork has none of the threads
            return
        self._closed = True
        self._in_step = False
        self._hooks.remove()
        self._around.close()
        for observer in self._observers:
            observer.phase("idle")
            observer.close()
        self._rows.write()
        if not self.steps:
            self.tell_once(
                "step_not_called", "run.step(loss) was never called: call it once after each optimizer.step()"
            )
        if others_come and not self._control.apart and error is None:
            self._steering.end(self.steps)
        self._progress.step = self.steps
        self._recording.end(state, error)

    def __enter__(self) -> ObservedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool:
        if isinstance(error, RunStopped):
            return True
        if isinstance(error, SystemExit) and error.code in (None, 0):
            error = None
        self.close("finished" if error is None else "failed", error)
        return False

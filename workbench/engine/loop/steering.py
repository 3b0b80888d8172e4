"""Steering: what agreed commands do to a training, between two steps, on every rank alike.

``Settings`` are values that stay; ``Steering`` carries out commands in their order and holds the ranks while they are
paused. A command that cannot be applied is an event (kind ``refused``) and changes nothing; whether it can depends only
on what all ranks know.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.core import controls
from workbench.core.config import TrainSpec
from workbench.core.controls import Knob
from workbench.core.frameworks import Capability
from workbench.core.records import Command, Event
from workbench.engine.agree.control import AgreedControl, BadLine
from workbench.engine.base.capabilities import Freezable, Normed, needed
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.engine.loop.learning_rate import LearningRate
from workbench.engine.state.plain_state import from_plain, plain_parts
from workbench.errors import ConfigError, RunError
from workbench.rundir.log import RankLogWriter


class Settings:
    """The values in force: of the loop, the strategy, the observers and the cell's knobs."""

    def __init__(
        self, spec: TrainSpec, workload: Workload, strategy: Strategy, observers: Sequence[StepObserver]
    ) -> None:
        self.lr = LearningRate(workload.optimizer, workload.lr_scheduler)
        self.clip = spec.clip
        self.accumulate = spec.accumulate
        self.log_every = 1
        #: samples of this replica's share of the last batch; None before the first
        self.share: int | None = None
        self._spec = spec
        self._workload = workload
        self._strategy = strategy
        self._observers = observers
        self._frozen: frozenset[str] = frozenset()

    @property
    def frozen(self) -> list[str]:
        """Layers that are not updated, in the model's order."""
        if not isinstance(self._strategy, Freezable):
            return []
        return [layer for layer in self._strategy.layers() if layer in self._frozen]

    def now(self, name: str) -> Any:
        """The value in force; None for what has none."""
        if name in ("clip", "accumulate", "log_every"):
            return getattr(self, name)
        if name == "lr":
            return self.lr.now
        if name == "weight_decay":
            return max((group.get("weight_decay", 0.0) for group in self._groups()), default=None)
        if name in controls.knobs:
            return controls.knobs[name].value
        return next((seen[name] for observer in self._observers if name in (seen := observer.settings())), None)

    def in_force(self) -> dict[str, Any]:
        """All values, for the log: settings and knobs that have one, and ``frozen``."""
        names = [*(control.name for control in controls.SETTINGS), *controls.knobs]
        found = {name: self.now(name) for name in names}
        return {name: value for name, value in found.items() if value is not None} | {"frozen": self.frozen}

    def set(self, name: str, value: Any) -> None:
        """Set a checked value. ``ConfigError`` when this training cannot have it."""
        if name == "lr":
            self.lr.set(value)
        elif name == "clip":
            needed(self._strategy, Normed, Capability.NORMED).set_clip(value)
            self.clip = value
        elif name == "weight_decay":
            self._set_weight_decay(value)
        elif name == "accumulate":
            self._check_accumulate(value)
            self.accumulate = value
        elif name == "log_every":
            self.log_every = value
        elif name in controls.knobs:
            controls.knobs[name].value = value
        else:
            observers = [observer for observer in self._observers if name in observer.settings()]
            if not observers:
                raise ConfigError(f"nothing watches gradients in this run (--monitor off): {name} has no effect")
            for observer in observers:
                observer.set(name, value)

    def follow_spec(self) -> bool:
        """What this run's spec says of clip, accumulation (it took over what was in force) and the learning rate, after
        a checkpoint was restored. Whether the learning rate was laid over a schedule of the cell's own, as
        ``set lr=...`` does; one of a recipe begins with it, and ``LearningRate.restore`` goes on from there."""
        for name in ("clip", "accumulate"):
            if self.now(name) != getattr(self._spec, name):
                self.set(name, getattr(self._spec, name))
        rate = self._spec.lr
        if rate is None or self._spec.recipe or self._workload.lr_scheduler is None:
            return False
        self.lr.set(rate)
        return True

    def _groups(self) -> list[dict[str, Any]]:
        return list(self._workload.optimizer.param_groups)

    def _set_weight_decay(self, value: float) -> None:
        """Of the groups that decay; of all, if none does: groups that are exempt stay so."""
        groups = [group for group in self._groups() if "weight_decay" in group]
        if not groups:
            raise ConfigError(f"{type(self._workload.optimizer).__name__} has no weight decay")
        exempt_too = not any(group["weight_decay"] for group in groups)
        for group in groups:
            if group["weight_decay"] or exempt_too:
                group["weight_decay"] = value

    def _check_accumulate(self, pieces: int) -> None:
        plan = self._spec.plan
        if self.share is not None and self.share % (pieces * plan.micro_batches):
            raise ConfigError(
                f"a rank's share of {self.share} samples cannot be cut into {pieces} pieces x {plan.micro_batches} "
                "micro-batches"
            )

    def freeze(self, pattern: str, *, frozen: bool) -> list[str]:
        """Freeze, or update again, the layers in whose names ``pattern`` is found; which layers changed."""
        freezable = needed(self._strategy, Freezable, Capability.FREEZABLE)
        layers = freezable.layers()
        matching = {layer for layer in layers if re.search(pattern, layer)}
        after = self._frozen | matching if frozen else self._frozen - matching
        if not matching:
            raise ConfigError(f"no layer's name has {pattern!r} in it; layers: {', '.join(layers[:8])} ...")
        if len(after) == len(layers):
            raise ConfigError(f"{pattern!r} would freeze all {len(layers)} layers: nothing would be trained")
        changed = after ^ self._frozen
        freezable.set_frozen(after)
        self._frozen = frozenset(after)
        return [layer for layer in layers if layer in changed]

    def state(self) -> tuple[dict[str, Any], list[str]]:
        """What changes training, plain, for a checkpoint; and what of the scheduler has no plain form."""
        scheduler = self._workload.lr_scheduler
        schedule, left_out = plain_parts(scheduler.state_dict()) if scheduler is not None else ({}, [])
        values = {"clip": self.clip, "accumulate": self.accumulate}
        knobs = {name: found.value for name, found in controls.knobs.items()}
        found = {"values": values, "knobs": knobs, "frozen": self.frozen, "schedule": schedule}
        return {**found, "lr": self.lr.state()}, left_out

    def restore(self, state: dict[str, Any]) -> None:
        """Undo ``state``; a knob or layer that this training does not have is left out. What is only watched, and how
        often it is logged, stays as it is."""
        scheduler = self._workload.lr_scheduler
        if scheduler is not None:
            scheduler.load_state_dict({**scheduler.state_dict(), **from_plain(state["schedule"])})
        self.lr.restore(state["lr"])
        for name, value in {**state["values"], **state["knobs"]}.items():
            if self.now(name) is not None and self.now(name) != value:
                self.set(name, value)
        if not isinstance(self._strategy, Freezable):
            return
        known = set(self._strategy.layers())
        frozen = frozenset(layer for layer in state["frozen"] if layer in known)
        if frozen != self._frozen:
            self._strategy.set_frozen(frozen)
            self._frozen = frozen


class Acts(Protocol):
    """What the trainer can be told to do between two steps. Each is done by all ranks at once."""

    def evaluate(self, step: int) -> None:
        """Evaluate now."""

    def sample(self, step: int) -> None:
        """Let the model write now."""

    def save(self, step: int, *, asked: bool) -> bool:
        """Write a checkpoint; whether it was written. ``asked``: by a person, so that it is kept."""

    def rollback(self, step: int, target: int | str) -> int:
        """Go back to a checkpoint; the step of it. ``ConfigError`` or ``RunError`` when that cannot be."""
        ...


@dataclass(slots=True)
class Boundary:
    """The moment after ``step``: where training is, and whether it is to end here."""

    step: int
    stop: bool = False


class Steering:
    """Carries out agreed commands. ``boundary`` is called after each step, on every rank."""

    def __init__(
        self,
        *,
        settings: Settings,
        acts: Acts,
        control: AgreedControl,
        log: RankLogWriter,
        enter: Callable[[str], None],
    ) -> None:
        self.paused = False
        self._settings = settings
        self._acts = acts
        self._control = control
        self._log = log
        self._enter = enter
        self._left: int | None = None
        self._declared: dict[str, Knob] = {}

    def boundary(self, step: int) -> Boundary:
        """Apply what was agreed for the moment after ``step``, and stay there while paused."""
        here = Boundary(step)
        self.declare_knobs(step)
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._left, self.paused = None, True
        self._apply_all(self._control.take(), here)
        held = False
        while self.paused and not here.stop:
            if not held:
                held = True
                self._enter("paused")
                self._log.event("state", "paused", step=here.step)
                self._log.flush()
            self._apply_all(self._control.wait(), here)
        if held and not here.stop:
            self._log.event("state", "running", step=here.step)
        return here

    def end(self, step: int) -> None:
        """After the last step: answer what came too late to be applied."""
        self._control.post()
        for command in self._control.take():
            if isinstance(command, Command):
                self._refuse(command, "the run ended before it could be applied", step)

    def declare_knobs(self, step: int) -> None:
        """Tell the log of knobs that the training script declared since the last call."""
        for name, knob in list(controls.knobs.items()):
            if self._declared.get(name) is not knob:
                self._declared[name] = knob
                self._log.event("control", "declared", {**knob.control.describe(), "value": knob.value}, step=step)

    def tell_in_force(self, step: int) -> None:
        """Tell the log which values hold; what is set later is told by itself."""
        if self._log.rank == 0:
            self._log.event("settings", "in_force", self._settings.in_force(), step=step)

    def _apply_all(self, commands: Sequence[Command | BadLine], here: Boundary) -> None:
        for command in commands:
            if isinstance(command, BadLine):
                value = {"line": command.text, "reason": command.reason}
                self._log.event("warning", "bad_command", value, step=here.step)
                continue
            try:
                declared = [knob.control for knob in controls.knobs.values()]
                value = controls.find(command.name, declared).parse(command.value)
                self._apply(command, value, here)
            except (ConfigError, RunError) as error:
                self._refuse(command, str(error), here.step)

    def _apply(self, command: Command, value: Any, here: Boundary) -> None:
        name, step = command.name, here.step
        if name in ("pause", "resume", "step"):
            old = "paused" if self.paused else "running"
            self.paused = name == "pause"
            self._left = value if name == "step" else None
            self._record(command, value if name == "step" else "paused" if self.paused else "running", old, step)
        elif name in ("stop", "branch"):
            if (name == "branch" or value == "checkpoint") and not self._acts.save(step, asked=True):
                raise RunError("the checkpoint could not be written, so the run goes on")
            here.stop = True
            self._record(command, value, None, step)
        elif name == "rollback":
            here.step = self._acts.rollback(step, value)
            self._left = None
            self._record(command, here.step, step, here.step)
            self.tell_in_force(here.step)
        elif name == "checkpoint":
            if not self._acts.save(step, asked=True):
                raise RunError("the checkpoint could not be written")
            self._record(command, step, None, step)
        elif name in ("evaluate", "sample"):
            getattr(self._acts, name)(step)
            self._record(command, None, None, step)
        elif name in ("freeze", "unfreeze"):
            before = self._settings.frozen
            self._settings.freeze(value, frozen=name == "freeze")
            self._record(command, self._settings.frozen, before, step)
        else:
            old = self._settings.now(name)
            self._settings.set(name, value)
            self._record(command, self._settings.now(name), old, step)

    def _record(self, command: Command, value: Any, old: Any, step: int) -> None:
        self._event("control", command, value, old, step)

    def _refuse(self, command: Command, reason: str, step: int) -> None:
        self._event("refused", command, {"value": command.value, "reason": reason}, None, step)

    def _event(self, kind: str, command: Command, value: Any, old: Any, step: int) -> None:
        self._log.append(
            Event(
                time=time.time(),
                step=step,
                rank=self._log.rank,
                kind=kind,
                name=str(command.name),
                value=json.dumps(value),
                old_value=json.dumps(old),
                who=str(command.who),
                command=command.id if isinstance(command.id, int) and 0 <= command.id < 2**53 else 0,
            )
        )

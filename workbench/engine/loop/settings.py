"""The settings of a training: how each one that ``workbench.core.controls`` declares is read and changed on a rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core import controls
from workbench.core.config import TrainSpec
from workbench.core.frameworks import Capability
from workbench.core.knobs import Knobs
from workbench.engine.base.capabilities import Freezable, Normed, needed
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import PlannedRank
from workbench.engine.base.workload import Workload
from workbench.engine.loop.learning_rate import LearningRate
from workbench.engine.state.plain_state import from_plain, to_plain_where_possible
from workbench.errors import ConfigError


class Settings:
    """The values in force on this rank: of the loop, the strategy, the observers and the cell's knobs.

    ``now`` and ``set`` go by the table ``SETTINGS``, or by the knobs that the workload's script declared.
    """

    def __init__(
        self, spec: TrainSpec, workload: Workload, strategy: PlannedRank, observers: Sequence[StepObserver]
    ) -> None:
        self.spec = spec
        self.workload = workload
        self.strategy = strategy
        self.observers = observers
        self.lr = LearningRate(workload.optimizer, workload.lr_scheduler, workload.schedule_every)
        self.clip = spec.clip
        self.accumulate = spec.accumulate
        self.log_every = 1
        #: samples of this replica's share of the last batch; None before the first
        self.share: int | None = None
        self._frozen: frozenset[str] = frozenset()

    @property
    def knobs(self) -> Knobs:
        """The knobs that the training script has declared by now."""
        return self.workload.knobs

    @property
    def frozen(self) -> list[str]:
        """Layers that are not updated, in the model's order."""
        if not isinstance(self.strategy, Freezable):
            return []
        return [layer for layer in self.strategy.layers() if layer in self._frozen]

    def now(self, name: str) -> Any:
        """The value in force; None for what has none."""
        knob = self.knobs.get(name)
        if knob is not None:
            return knob.value
        return SETTINGS[name].read(self) if name in SETTINGS else None

    def set(self, name: str, value: Any) -> None:
        """Set a checked value. ``ConfigError`` when this training cannot have it."""
        knob = self.knobs.get(name)
        if knob is not None:
            knob.value = value
        else:
            SETTINGS[name].change(self, value)

    def current(self) -> dict[str, Any]:
        """All values, for the log: settings and knobs that have one, and ``frozen``."""
        found = {control.name: self.now(control.name) for control in (*controls.settings(), *self.knobs.controls())}
        return {name: value for name, value in found.items() if value is not None} | {"frozen": self.frozen}

    def follow_spec(self) -> bool:
        """After a checkpoint was restored, apply what this run's spec says: the settings that begin with an option of
        it, and the learning rate. Returns whether the rate was laid over a schedule of the cell's own, as
        ``set lr=...`` does; a recipe's schedule begins with the rate, and ``LearningRate.restore`` goes on from there.
        """
        for control in _begun_by_spec():
            value = getattr(self.spec, control.option)
            if self.now(control.name) != value:
                self.set(control.name, value)
        rate = self.spec.lr
        if rate is None or self.spec.recipe or self.workload.lr_scheduler is None:
            return False
        self.lr.set(rate)
        return True

    def freeze(self, pattern: str, *, frozen: bool) -> list[str]:
        """Freeze the layers in whose names ``pattern`` is found, or update them again; returns those that changed.
        ``ConfigError`` when there is no such layer, or none would be left to train."""
        freezable = needed(self.strategy, Freezable, Capability.FREEZABLE)
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
        """What changes training, as plain values for a checkpoint; and the names of the scheduler's attributes that
        have no plain form."""
        scheduler = self.workload.lr_scheduler
        schedule, left_out = to_plain_where_possible(scheduler.state_dict()) if scheduler is not None else ({}, [])
        values = {control.name: self.now(control.name) for control in _begun_by_spec()}
        found = {"values": values, "knobs": self.knobs.values(), "frozen": self.frozen, "schedule": schedule}
        return {**found, "lr": self.lr.state()}, left_out

    def restore(self, state: dict[str, Any]) -> None:
        """Undo ``state``; a setting or layer that this training does not have is left out. What is only watched, and
        how often it is logged, stays as it is."""
        scheduler = self.workload.lr_scheduler
        if scheduler is not None:
            scheduler.load_state_dict({**scheduler.state_dict(), **from_plain(state["schedule"])})
        self.lr.restore(state["lr"])
        self.knobs.restore(state["knobs"])
        for name, value in state["values"].items():
            if self.now(name) is not None and self.now(name) != value:
                self.set(name, value)
        if not isinstance(self.strategy, Freezable):
            return
        known = set(self.strategy.layers())
        frozen = frozenset(layer for layer in state["frozen"] if layer in known)
        if frozen != self._frozen:
            self.strategy.set_frozen(frozen)
            self._frozen = frozen


def _begun_by_spec() -> list[controls.Control]:
    """Settings that begin with an option of the spec; checkpoints keep them."""
    return [control for control in controls.settings() if control.option]


@dataclass(frozen=True, slots=True)
class Setting:
    """How a setting is read (None: this training has none) and changed (``ConfigError``: it cannot be)."""

    read: Callable[[Settings], Any]
    change: Callable[[Settings, Any], None]


def _set_clip(settings: Settings, norm: float) -> None:
    needed(settings.strategy, Normed, Capability.NORMED).set_clip(norm)
    settings.clip = norm


def _set_accumulate(settings: Settings, pieces: int) -> None:
    if settings.workload.train_step is not None and pieces != 1:
        raise ConfigError("train_step is called once a step and makes its own updates: cut the batch inside of it")
    micro_batches, has_stages = settings.spec.plan.micro_batches, settings.spec.plan.pp > 1
    if has_stages and settings.share is not None and settings.share % (pieces * micro_batches):
        raise ConfigError(
            f"a rank's share of {settings.share} samples cannot be split into {pieces} gradient accumulation steps x "
            f"{micro_batches} micro-batches"
        )
    settings.accumulate = pieces


def _set_log_every(settings: Settings, steps: int) -> None:
    settings.log_every = steps


def _weight_decay(settings: Settings) -> float | None:
    return max((group.get("weight_decay", 0.0) for group in settings.workload.optimizer.param_groups), default=None)


def _set_weight_decay(settings: Settings, decay: float) -> None:
    """Of the parameter groups that decay; of all, if none does: groups that are exempt stay so."""
    optimizer = settings.workload.optimizer
    groups = [group for group in optimizer.param_groups if "weight_decay" in group]
    if not groups:
        raise ConfigError(f"{type(optimizer).__name__} has no weight decay")
    exempt_too = not any(group["weight_decay"] for group in groups)
    for group in groups:
        if group["weight_decay"] or exempt_too:
            group["weight_decay"] = decay


def _of_observers(name: str) -> Setting:
    """A setting that observers have (``StepObserver.settings``)."""

    def having(settings: Settings) -> list[StepObserver]:
        return [observer for observer in settings.observers if name in observer.settings()]

    def read(settings: Settings) -> Any:
        return next((observer.settings()[name] for observer in having(settings)), None)

    def change(settings: Settings, value: Any) -> None:
        observers = having(settings)
        if not observers:
            raise ConfigError(f"nothing of this run is watched (--monitor off): {name} has no effect")
        for observer in observers:
            observer.set(name, value)

    return Setting(read, change)


#: one for each setting of ``workbench.core.controls``
SETTINGS: dict[str, Setting] = {
    "lr": Setting(lambda settings: settings.lr.now, lambda settings, value: settings.lr.set(value)),
    "clip": Setting(lambda settings: settings.clip, _set_clip),
    "weight_decay": Setting(_weight_decay, _set_weight_decay),
    "accumulate": Setting(lambda settings: settings.accumulate, _set_accumulate),
    "log_every": Setting(lambda settings: settings.log_every, _set_log_every),
    "grad_every": _of_observers("grad_every"),
    "grad_layers": _of_observers("grad_layers"),
    "watch": _of_observers("watch"),
    "watch_every": _of_observers("watch_every"),
    "watch_layers": _of_observers("watch_layers"),
}

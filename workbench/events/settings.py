"""Which settings are in force in a run, by its log: what held when it began or went back, and what was set since."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.controls import Control
from workbench.core.records import EventKind
from workbench.events.decode import decoded_row, of_kind
from workbench.events.words import setting, short


def declared(events: Columns) -> list[Control]:
    """The knobs that the training script declared, by rows of the table ``events``; one that cannot be read, of another
    version, is left out."""
    found = {}
    for event in of_kind(events, EventKind.CONTROL, "declared", rank=0):
        try:
            control = Control.from_description(event.fields)
        except (ValueError, TypeError):
            continue
        found[control.name] = control
    return list(found.values())


def hand_changes(events: Columns) -> dict[str, str]:
    """What was changed by hand while a run trained: setting or knob, or "rollback" -> each value and its step, as
    "0.001 at step 20, 0.0005 at step 30". By what rank 0 logged."""
    names = {control.name: control.value_name for control in controls.CONTROLS} | {"rollback": "rollback"}
    names |= {control.name: control.name for control in declared(events)}
    found: dict[str, list[str]] = {}
    for event in of_kind(events, EventKind.CONTROL, rank=0):
        if name := names.get(event.name, ""):
            text = f"to step {short(event.value)}" if name == "rollback" else setting(name, event.value)
            found.setdefault(name, []).append(f"{text} at step {event.step}")
    return {name: ", ".join(texts) for name, texts in found.items()}


class CurrentSettings:
    """``take`` events and steps as they come; ``values``: setting or knob -> its value now.

    Besides the settings there is ``frozen`` (layers that are not updated), and ``interval``: steps between gradient
    statistics where ``grad_every`` is "auto". A run of an earlier version tells only what was set.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._lr_since = -math.inf

    def take(self, events: Columns) -> None:
        """Rows of the table ``events``, in the order in which rank 0 wrote them."""
        told = np.isin(events["kind"], (EventKind.CONTROL, EventKind.SETTINGS, EventKind.MONITOR))
        for row in (told & (events["rank"] == 0)).nonzero()[0]:
            event = decoded_row(events, int(row))
            if event.kind == EventKind.SETTINGS:
                self.values |= event.fields
                self._lr_since = event.time
            elif event.kind == EventKind.CONTROL:
                self._set(event.name, event.value, event.time)
            elif event.name == "interval":
                self.values["interval"] = event.value

    def take_lr(self, lr: float, time: float) -> None:
        """The learning rate of the newest step that is known, and when it ended: schedules change it, too."""
        if time >= self._lr_since and math.isfinite(lr):
            self.values["lr"] = lr

    def _set(self, name: str, value: Any, time: float) -> None:
        if name == "declared" and isinstance(value, dict):
            self.values[str(value.get("name"))] = value.get("value")
            return
        names = {control.name: control.value_name for control in controls.CONTROLS}
        value_name = names.get(name, name if name in self.values else "")
        if value_name:
            self.values[value_name] = value
            if name == "lr":
                self._lr_since = time

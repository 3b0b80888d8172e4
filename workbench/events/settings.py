"""Which settings are in force in a run, by its log: what held when it began or went back, and what was set since."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.controls import Control


def declared(events: Columns) -> list[Control]:
    """The knobs that the training script declared, by rows of the table ``events``; one that cannot be read, of another
    version, is left out."""
    chosen = (events["kind"] == "control") & (events["name"] == "declared") & (events["rank"] == 0)
    found = {}
    for text in events["value"][chosen]:
        try:
            control = Control.from_description(json.loads(text))
        except (ValueError, TypeError):
            continue
        found[control.name] = control
    return list(found.values())


class InForce:
    """``take`` events and steps as they come; ``values``: setting or knob -> its value now.

    Besides the settings there is ``frozen`` (layers that are not updated), and ``interval``: steps between gradient
    statistics where ``grad_every`` is "auto". A run of an earlier version tells only what was set.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._lr_since = -math.inf

    def take(self, events: Columns) -> None:
        """Rows of the table ``events``, in the order in which rank 0 wrote them."""
        told = np.isin(events["kind"], ("control", "settings", "monitor")) & (events["rank"] == 0)
        for i in told.nonzero()[0]:
            kind, name = str(events["kind"][i]), str(events["name"][i])
            try:
                value = json.loads(events["value"][i])
            except ValueError:  # of another program, or another version
                continue
            if kind == "settings" and isinstance(value, dict):
                self.values |= value
                self._lr_since = float(events["time"][i])
            elif kind == "monitor" and name == "interval":
                self.values["interval"] = value
            elif kind == "control":
                self._set(name, value, float(events["time"][i]))

    def take_lr(self, lr: float, time: float) -> None:
        """The learning rate of the newest step that is known, and when it ended: schedules change it, too."""
        if time >= self._lr_since and math.isfinite(lr):
            self.values["lr"] = lr

    def _set(self, name: str, value: Any, time: float) -> None:
        if name == "declared" and isinstance(value, dict):
            self.values[str(value.get("name"))] = value.get("value")
            return
        names = {control.name: control.in_force for control in controls.CONTROLS}
        in_force = names.get(name, name if name in self.values else "")
        if in_force:
            self.values[in_force] = value
            if name == "lr":
                self._lr_since = time

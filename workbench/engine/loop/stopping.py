"""Ends a training before its last step when a rule of ``--stop-when`` says so: the same decision on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.numbers import number
from workbench.core.rules.criteria import Best, Rule, value_of


@dataclass(slots=True)
class _Followed:
    """How a rule's value went: the ``best`` (None: none yet) at ``best_step``, and how many values came ``since``."""

    rule: Rule
    best: float | None = None
    best_step: int = 0
    since: int = 0

    def take(self, step: int, value: float) -> str:
        """Why the training ends with this value; "" while it goes on."""
        rule = self.rule
        if not rule.count:
            return f"{rule.text}: it is {number(value)}" if rule.holds(value) else ""
        if Best(rule.name, rule.highest).improves(value, self.best):
            self.best, self.best_step, self.since = value, step, 0
            return ""
        self.since += 1
        if self.since < rule.count:
            return ""
        best = "it was never finite" if self.best is None else f"{number(self.best)} at step {self.best_step} is best"
        return f"{rule.text}: {best}, {number(value)} now"


class Stopping:
    """Follows the values that the rules name. Every rank is given the same ones. ``reason``: why to end; "" so far."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._followed = [_Followed(rule) for rule in rules]
        self.reason = ""

    @property
    def follows_training(self) -> bool:
        """Whether a rule is about the training loss."""
        return any(followed.rule.of_training for followed in self._followed)

    @property
    def follows_validation(self) -> bool:
        """Whether a rule is about a value of the validation."""
        return not all(followed.rule.of_training for followed in self._followed)

    def stepped(self, step: int, loss: float) -> None:
        """Take the training loss of the global batch."""
        for followed in self._followed:
            if followed.rule.of_training:
                self.reason = self.reason or followed.take(step, loss)

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of an evaluation. One that is missing (its metric raised) counts as one without a number."""
        for followed in self._followed:
            if not followed.rule.of_training:
                value = value_of(followed.rule.name, values)
                self.reason = self.reason or followed.take(step, math.nan if value is None else value)

    def state(self) -> dict[str, list[Any]]:
        """For a checkpoint: by the rule's text."""
        return {each.rule.text: [each.best, each.best_step, each.since] for each in self._followed}

    def restore(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Undo ``state``; a rule that it does not hold begins anew."""
        self.reason = ""
        for each in self._followed:
            each.best, each.best_step, each.since = state.get(each.rule.text, (None, 0, 0))

"""Which checkpoint is the best, and when a training ends early: ``--save-best`` and ``--stop-when``. Pure.

A value is named as it is logged: ``validation_loss``, a metric of the validation (``accuracy``), or ``loss``, the
training loss of the global batch. Rules::

    NAME has not improved for N evaluations        (the training loss: for N steps)
    NAME < NUMBER                                  (or <=, >, >=)
    NAME is not finite

Several are joined by ``or``. Whether lower or higher values are better is known by the name, or said after it
(``score lowest``).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError, suggest

TRAINING_LOSS, VALIDATION_LOSS = "loss", "validation_loss"
_PREFIX = "validation_"
_LOWER = frozenset(
    ("loss", "perplexity", "ppl", "error", "err", "mse", "mae", "rmse", "nll", "bits", "wer", "cer", "fid", "distance")
)
_HIGHER = frozenset(
    ("accuracy", "acc", "f1", "auc", "auroc", "precision", "recall", "bleu", "rouge", "r2", "iou", "dice", "reward")
)
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_WAY = r"(?P<name>[\w.@/-]+)(?:\s+(?P<way>highest|lowest))?"
_BEST = re.compile(_WAY)
_PATIENCE = re.compile(rf"{_WAY}\s+has\s+not\s+improved\s+for\s+(?P<count>\d+)\s+(?P<unit>evaluation|step)s?")
_COMPARED = re.compile(r"(?P<name>[\w.@/-]+)\s*(?P<order><=|>=|<|>)\s*(?P<limit>\S+)")
_NOT_FINITE = re.compile(r"(?P<name>[\w.@/-]+)\s+is\s+not\s+finite")
_HOW = (
    '"NAME has not improved for N evaluations", "NAME > NUMBER" (or <, <=, >=) or "NAME is not finite", joined by "or"'
)


@dataclass(frozen=True)
class Best:
    """A value of the validation, and whether higher ones are better."""

    name: str
    highest: bool

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` is better than all before (None: there was none). What is not finite never is."""
        if not math.isfinite(value):
            return False
        return best is None or (value > best if self.highest else value < best)


@dataclass(frozen=True)
class Rule:
    """One condition under which a training ends. ``text``: as it was written.

    ``count`` (0: it is no patience): after so many evaluations or steps without a better value. ``order`` and
    ``limit``: the comparison; "" for a value that is not finite.
    """

    text: str
    name: str
    count: int = 0
    highest: bool = False
    order: str = ""
    limit: float = 0.0

    @property
    def of_training(self) -> bool:
        """Whether it is about the training loss, which every step has."""
        return self.name == TRAINING_LOSS

    def holds(self, value: float) -> bool:
        """Whether a value meets the condition; a patience is the caller's to count."""
        if self.order:
            return _ORDERS[self.order](value, self.limit)
        return not self.count and not math.isfinite(value)


def check(save_best: str, stop_when: str, *, evaluates: bool) -> None:
    """Raise ``ConfigError`` for criteria that are not understood, or follow a validation where nothing
    ``evaluates``."""
    flags = ["--save-best"] if save_best and parse_best(save_best) else []
    flags += ["--stop-when" for rule in parse_rules(stop_when) if not rule.of_training]
    if flags and not evaluates:
        raise ConfigError(
            f"{flags[0]} needs validation, which --eval-every 0 turns off: use --eval-every N or 1ep",
            field=flags[0],
        )


def parse_best(text: str) -> Best:
    """What ``--save-best`` names. ``ConfigError`` when it is not understood."""
    found = _BEST.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"--save-best {text!r} is not understood: name a validation metric, such as validation_loss or "
            '"accuracy highest"',
            field="--save-best",
        )
    if found["name"] == TRAINING_LOSS:
        raise ConfigError(
            "--save-best loss: loss is the training loss of one batch; --save-best validation_loss follows the "
            "validation",
            field="--save-best",
        )
    return Best(found["name"], _is_highest(found["name"], found["way"], "--save-best"))


def parse_rules(text: str) -> list[Rule]:
    """The rules of ``--stop-when``. ``ConfigError`` when one is not understood."""
    return [_rule(part.strip()) for part in re.split(r"\s+or\s+", text.strip())] if text.strip() else []


def _rule(text: str) -> Rule:
    flag = "--stop-when"
    if found := _PATIENCE.fullmatch(text):
        name, unit, count = found["name"], found["unit"], int(found["count"])
        wanted = "step" if name == TRAINING_LOSS else "evaluation"
        if unit != wanted or not count:
            why = "which every step has" if name == TRAINING_LOSS else "which every evaluation has"
            number = max(1, count)
            raise ConfigError(f"--stop-when {text!r}: {name}, {why}: write for {number} {wanted}s", field=flag)
        return Rule(text, name, count=count, highest=_is_highest(name, found["way"], flag))
    if found := _COMPARED.fullmatch(text):
        try:
            limit = float(found["limit"])
        except ValueError as error:
            raise ConfigError(f"--stop-when {text!r}: {found['limit']!r} is not a number", field=flag) from error
        return Rule(text, found["name"], order=found["order"], limit=limit)
    if found := _NOT_FINITE.fullmatch(text):
        return Rule(text, found["name"])
    raise ConfigError(f"--stop-when {text!r} is not understood: write {_HOW}", field=flag)


def _is_highest(name: str, way: str | None, flag: str) -> bool:
    if way is not None:
        return way == "highest"
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    lower, higher = words & _LOWER, words & _HIGHER
    if bool(lower) == bool(higher):
        raise ConfigError(
            f'{flag}: the name {name} does not tell whether lower or higher is better: write "{name} lowest" or '
            f'"{name} highest"',
            field=flag,
        )
    return bool(higher)


def value_of(name: str, values: Mapping[str, Any]) -> float | None:
    """The value of that name among those of a validation; None when it has none.

    ``validation_loss`` is the validation's ``loss``; other values have their own name, or that behind ``validation_``.
    """
    for key in (name, name.removeprefix(_PREFIX)):
        if key in values and not (key == TRAINING_LOSS and name == TRAINING_LOSS):
            value = values[key]
            return float(value) if isinstance(value, int | float) else None
    return None


def names_in(values: Mapping[str, Any]) -> list[str]:
    """The names by which criteria can ask for the numbers of a validation."""
    numbers = [name for name, value in values.items() if isinstance(value, int | float)]
    return [VALIDATION_LOSS if name == TRAINING_LOSS else name for name in numbers]


def check_known(name: str, known: Collection[str], where: str) -> None:
    """Raise ``ConfigError`` when no validation gives ``name``. ``where``: the flag or variable that asks for it."""
    if name in known or name.removeprefix(_PREFIX) in known:
        return
    if not known:
        raise ConfigError(
            f"{where}: {name} is a validation metric, but this run has no validation: define eval_dataset or "
            "eval_dataloader in the cell",
            field=where,
        )
    raise ConfigError(f"{where}: the validation has no metric {name!r}: {suggest(name, known)}", field=where)

"""Intervals between evaluations and checkpoints: a number of steps, or of epochs as ``"1ep"``."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

from workbench.errors import ConfigError

#: a number of steps (0: never), or a text such as "1ep"
Every = int | str
_EPOCHS = re.compile(r"\s*(\d+)\s*(?:ep|epochs?)\s*")


def interval(text: str) -> Every:
    """``"50"`` -> 50, ``"2 epochs"`` -> ``"2ep"``. ``ArgumentTypeError``, which parsers show, for anything else."""
    found = _EPOCHS.fullmatch(text)
    if found:
        return f"{int(found[1])}ep"
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(_not_an_interval(text)) from None


def _not_an_interval(value: object) -> str:
    return f"must be a whole number of steps (0: off), or of epochs such as 1ep, not {value!r}"


def check_interval(value: Every, flag: str) -> None:
    """Raise ``ConfigError`` for what is no interval."""
    is_right = value >= 0 if isinstance(value, int) else epochs_in(value) > 0
    if not is_right:
        raise ConfigError(f"{flag} {_not_an_interval(value)}", field=flag)


def epochs_in(every: Every) -> int:
    """The number of epochs of an interval in epochs; 0 for one in steps."""
    found = _EPOCHS.fullmatch(every) if isinstance(every, str) else None
    return int(found[1]) if found else 0


def is_due(every: Every, step: int, epochs: int, *, epoch_ended: bool) -> bool:
    """Whether an interval ends with ``step``, after which ``epochs`` epochs are done."""
    if isinstance(every, int):
        return every > 0 and step % every == 0
    return epoch_ended and epochs % epochs_in(every) == 0

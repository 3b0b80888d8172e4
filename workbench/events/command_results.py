"""What became of commands: lines of ``control.jsonl`` beside the events by which the ranks answered them.

An answer names its command by the command's number (``Command.id``, ``Event.command``): of commands that look alike,
some may have been refused, and some may still be on their way.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workbench.core.records import Command, EventKind

#: kinds of events that answer a command
ANSWERS = (EventKind.CONTROL, EventKind.REFUSED)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An event of kind ``control`` or ``refused``, decoded; of all ranks that logged it one is enough."""

    time: float
    step: int
    kind: str
    name: str
    value: Any
    old_value: Any = None
    who: str = ""
    command: int = 0


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A command and what became of it. ``time`` is when it was asked, where that is known.

    ``step``: after which it took effect or was refused, None when no rank answered. ``refused``: why, or "".
    """

    time: float
    who: str
    name: str
    value: Any
    old_value: Any = None
    step: int | None = None
    refused: str = ""


def answered(asked: Iterable[Command], answers: Iterable[Answer]) -> list[Answered]:
    """Every command in order of time; what no line asked for stands there with what its event says."""
    given: dict[tuple[int, str], deque[Answer]] = defaultdict(deque)
    for answer in answers:
        if answer.name != "declared":  # a knob of the training script, not a command
            given[answer.command, answer.name].append(answer)
    found = []
    for command in asked:
        same = given.get((command.id, command.name))
        found.append(_answered(command, same.popleft() if same else None))
    found += [_answered(None, answer) for rest in given.values() for answer in rest]
    return sorted(found, key=lambda one: one.time)


def _answered(command: Command | None, answer: Answer | None) -> Answered:
    asked = command or answer
    assert asked is not None
    if answer is None:
        return Answered(time=asked.time, who=asked.who, name=asked.name, value=asked.value)
    value, refused = answer.value, ""
    if answer.kind == EventKind.REFUSED:
        told = value if isinstance(value, dict) else {}
        value, refused = told.get("value"), str(told.get("reason", "no reason was given"))
    return Answered(
        time=asked.time,
        who=asked.who,
        name=answer.name,
        value=value,
        old_value=answer.old_value,
        step=answer.step,
        refused=refused,
    )

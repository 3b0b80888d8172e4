"""What people asked of a run, and when all ranks did it: ``control.jsonl`` beside the ranks' ``control`` events."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

from workbench.records import Command
from workbench.report.facts import Happening, RunFacts
from workbench.run_directory import CONTROL_FILE


@dataclass(frozen=True, kw_only=True)
class Control:
    """One command. ``step`` None: no rank ever took it. ``time`` is when it was asked, where that is known."""

    time: float
    who: str
    name: str
    value: Any
    old_value: Any
    step: int | None


def controls(facts: RunFacts) -> list[Control]:
    """Every command in order of time, matched with the step at which it took effect; lines that cannot be read become
    a note of the facts."""
    asked = _asked(facts)
    waiting: dict[str, deque[Command]] = defaultdict(deque)
    for command in asked:
        waiting[command.name].append(command)
    found = []
    for happening in facts.of_kind("control"):
        if happening.name == "declared":  # a knob of the training script, not a command
            continue
        same = waiting[happening.name]
        found.append(_taken(happening, same.popleft() if same else None))
    for command in (command for queue in waiting.values() for command in queue):
        about = {"time": command.time, "who": command.who, "name": command.name, "value": command.value}
        found.append(Control(**about, old_value=None, step=None))
    return sorted(found, key=lambda control: control.time)


def _taken(happening: Happening, command: Command | None) -> Control:
    value = happening.value
    if command is not None and value == command.who:
        value = command.value  # the event names who asked, where there is no value
    return Control(
        time=command.time if command else happening.time,
        who=command.who if command else happening.who,
        name=happening.name,
        value=value,
        old_value=happening.old_value,
        step=happening.step,
    )


def _asked(facts: RunFacts) -> list[Command]:
    try:
        lines = (facts.path / CONTROL_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    asked, unread = [], 0
    for line in filter(str.strip, lines):
        try:
            asked.append(Command.from_line(line))
        except (ValueError, TypeError):
            unread += 1
    if unread:
        facts.notes.append(f"{unread} of {len(lines)} lines of {CONTROL_FILE} could not be read.")
    return asked

"""What people asked of a run, and when all ranks did it: ``control.jsonl`` beside the ranks' answers."""

from __future__ import annotations

from workbench.core.records import Command
from workbench.events.command_results import ANSWERS, Answer, Answered, answered
from workbench.report.run_data import RunFacts
from workbench.rundir.commands import CommandReader
from workbench.rundir.directory import CONTROL_FILE


def controls(facts: RunFacts) -> list[Answered]:
    """Every command in order of time, with the step at which it took effect or why it was refused; lines that cannot be
    read become a note of the facts."""
    answers = [
        Answer(time=h.time, step=h.step, kind=h.kind, name=h.name, value=h.value, old_value=h.old_value, who=h.who,
               command=h.command)
        for kind in ANSWERS for h in facts.of_kind(kind)
    ]  # fmt: skip
    return answered(_asked(facts), answers)


def _asked(facts: RunFacts) -> list[Command]:
    lines = CommandReader(facts.path).read()
    asked = [line for line in lines if isinstance(line, Command)]
    if len(asked) < len(lines):
        facts.notes.append(f"{len(lines) - len(asked)} of {len(lines)} lines of {CONTROL_FILE} could not be read.")
    return asked

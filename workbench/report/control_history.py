"""Lists the commands that users gave to a run and their results: ``control.jsonl`` matched with the ranks' events."""

from __future__ import annotations

from workbench.core.records import Command
from workbench.events.command_results import ANSWERS, Answer, Answered, answered
from workbench.report.run_data import RunData
from workbench.rundir.commands import CommandReader
from workbench.rundir.directory import CONTROL_FILE


def read_control_history(run: RunData) -> list[Answered]:
    """All commands in order of time, each with the step at which it took effect or the reason why it was refused.

    Unreadable lines of ``control.jsonl`` are counted in ``run.notes``.
    """
    answers = [
        Answer(time=event.time, step=event.step, kind=event.kind, name=event.name, value=event.value,
               old_value=event.old_value, who=event.who, command=event.command)
        for kind in ANSWERS for event in run.events_of_kind(kind)
    ]  # fmt: skip
    return answered(_read_commands(run), answers)


def _read_commands(run: RunData) -> list[Command]:
    lines = CommandReader(run.path).read()
    commands = [line for line in lines if isinstance(line, Command)]
    if len(commands) < len(lines):
        run.notes.append(f"{len(lines) - len(commands)} of {len(lines)} lines of {CONTROL_FILE} could not be read.")
    return commands

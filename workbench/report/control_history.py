"""Lists the commands that users gave to a run and their results: ``control.jsonl`` matched with the ranks' events."""

from __future__ import annotations

from workbench.core.records import Command
from workbench.events.command_results import ANSWERS, Answer, Answered, answered
from workbench.report.run_data import RunData
from workbench.rundir.commands import CommandReader
from workbench.rundir.directory import CONTROL_FILE


def controls(run: RunData) -> list[Answered]:
    """All commands in order of time, each with the step at which it took effect or the reason why it was refused.

    Unreadable lines of ``control.jsonl`` are counted in ``run.notes``.
    """
    answers = [
        Answer(time=h.time, step=h.step, kind=h.kind, name=h.name, value=h.value, old_value=h.old_value, who=h.who,
               command=h.command)
        for kind in ANSWERS for h in run.of_kind(kind)
    ]  # fmt: skip
    return answered(_asked(run), answers)


def _asked(run: RunData) -> list[Command]:
    lines = CommandReader(run.path).read()
    asked = [line for line in lines if isinstance(line, Command)]
    if len(asked) < len(lines):
        run.notes.append(f"{len(lines) - len(asked)} of {len(lines)} lines of {CONTROL_FILE} could not be read.")
    return asked

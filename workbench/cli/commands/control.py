"""Steer a running run from any terminal: pause, resume, step 5, set lr=1e-4 clip=1.0, checkpoint, rollback 100 ...

The ranks apply the command after their current step. With --wait, this waits for that and prints what changed.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from workbench.core import controls
from workbench.core.records import EventKind

if TYPE_CHECKING:
    from workbench.core.controls import Control
    from workbench.run.api import Run

NAME = "control"
HELP = "control a running run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench control``; its help lists every act and setting."""
    acts, settings = ([f"  {_line(control)}" for control in group] for group in (controls.acts(), controls.settings()))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["acts:", *acts, "", "set NAME=VALUE ..., where NAME is:", *settings]).replace("%", "%%")
    parser.add_argument("run_name", metavar="RUN", help="a run directory or a run's name")
    words = [*(control.name for control in controls.acts()), "set", "show"]
    parser.add_argument("act", metavar="ACT", choices=words, help=f"one of {', '.join(words)}")
    parser.add_argument(
        "values", metavar="VALUE", nargs="*", help="the value of the act, or NAME=VALUE for set and branch"
    )
    parser.add_argument("--wait", action="store_true", help="wait until the ranks have applied the command")


def run(arguments: argparse.Namespace) -> int:
    """Check the command and write it; returns the exit code."""
    from workbench.errors import ConfigError
    from workbench.run.api import Run

    chosen = Run(arguments.run_name)
    if arguments.act == "show":
        settings = chosen.settings()
        for control in chosen.controls():
            value = settings.get(control.name, "")
            print(_line(control, f"{value!s:12} "))
        return 0
    since = len(chosen.events())
    names = [arguments.act]
    if arguments.act == "set":
        changes = controls.assignments(arguments.values)
        chosen.set(**changes)
        names = list(changes)
    elif controls.find(arguments.act).starts_run:
        print(chosen.branch(**controls.assignments(arguments.values)).path)
        return 0
    elif controls.find(arguments.act).has_blanks:
        chosen.ask(arguments.act, " ".join(arguments.values))
    elif len(arguments.values) > 1:
        raise ConfigError(f"{arguments.act} takes at most one value, not {' '.join(arguments.values)}")
    else:
        chosen.ask(arguments.act, arguments.values[0] if arguments.values else None)
    if not arguments.wait:
        print(f"sent to {chosen.name}: {arguments.act} {' '.join(arguments.values)}".rstrip())
        return 0
    return _answered(chosen, names, since)


def _line(control: Control, value: str = "") -> str:
    return f"{control.name:12} {value}{control.help} ({control.allowed()})"


def _answered(run: Run, names: list[str], since: int) -> int:
    """Print the outcome of the commands on rank 0. Returns 1 if one was refused or the run ended before."""
    left, code = set(names), 0
    while left:
        ended = run.ended()
        events = run.events().iloc[since:]
        for event in events[(events["rank"] == 0) & events["kind"].isin(["control", "refused"])].itertuples():
            if event.name not in left:
                continue
            left.discard(event.name)
            if event.kind == EventKind.REFUSED:
                code = 1
                print(f"{event.name} refused after step {event.step}: {event.value['reason']}")
            else:
                value, old = json.dumps(event.value), json.dumps(event.old_value)
                print(f"{event.name} = {value} after step {event.step}, was {old}")
        if ended and left:
            print(f"run {run.name} is {run.status}: {', '.join(sorted(left))} was not applied")
            return 1
        time.sleep(0.05)
    return code

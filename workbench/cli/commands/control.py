"""Steer a run that trains, from any terminal: pause, resume, step 5, set lr=1e-4 clip=1.0, checkpoint, rollback 100 ...

The ranks apply it after the step they are in; with --wait the command returns when they have, and says what changed.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from workbench.core.controls import ACTS, SETTINGS

if TYPE_CHECKING:
    from workbench.run.run import Run

NAME = "control"
HELP = "steer a run that trains"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench control``; its help lists every act and setting."""
    lines = [f"  {control.name:12} {control.help} ({control.allowed()})" for control in ACTS]
    names = [f"  {control.name:12} {control.help} ({control.allowed()})" for control in SETTINGS]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["acts:", *lines, "", "set NAME=VALUE ..., where NAME is:", *names]).replace("%", "%%")
    parser.add_argument("run_name", metavar="RUN", help="a run directory or a run's name")
    acts = [*(control.name for control in ACTS), "set", "show"]
    parser.add_argument("act", metavar="ACT", choices=acts, help=f"one of {', '.join(acts)}")
    parser.add_argument("values", metavar="VALUE", nargs="*", help="the act's value, or NAME=VALUE of set and branch")
    parser.add_argument("--wait", action="store_true", help="wait until the ranks have applied it")


def run(arguments: argparse.Namespace) -> int:
    """Check the command and write it; returns the exit code."""
    from workbench.core import controls
    from workbench.errors import ConfigError
    from workbench.run.run import Run

    chosen = Run(arguments.run_name)
    if arguments.act == "show":
        settings = chosen.settings()
        for control in chosen.controls():
            value = settings.get(control.name, "")
            print(f"{control.name:12} {value!s:12} {control.help} ({control.allowed()})")
        return 0
    since = len(chosen.events())
    if arguments.act == "branch":
        print(chosen.branch(**controls.assignments(arguments.values)).path)
        return 0
    if arguments.act == "set":
        chosen.set(**controls.assignments(arguments.values))
    elif len(arguments.values) > 1:
        raise ConfigError(f"{arguments.act} takes one value at most, not {' '.join(arguments.values)}")
    else:
        chosen.ask(arguments.act, arguments.values[0] if arguments.values else None)
    if not arguments.wait:
        print(f"asked {chosen.name}: {arguments.act} {' '.join(arguments.values)}".rstrip())
        return 0
    names = list(controls.assignments(arguments.values)) if arguments.act == "set" else [arguments.act]
    return _answered(chosen, names, since)


def _answered(run: Run, names: list[str], since: int) -> int:
    """Print what became of the commands on rank 0; 1 when one was refused or the run ended before."""
    left, code = set(names), 0
    while left:
        ended = run.ended()
        events = run.events().iloc[since:]
        for event in events[(events["rank"] == 0) & events["kind"].isin(["control", "refused"])].itertuples():
            if event.name not in left:
                continue
            left.discard(event.name)
            if event.kind == "refused":
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

"""Run a training script unchanged and record it as a run: ``workbench watch -- torchrun --nproc-per-node 2 train.py``.

Devices, output and liveness are recorded of every script in Python; steps, losses that backward was called on, phases
and gradients of one that trains with an optimizer of torch, from its second step on. Signals that are sent to this
process reach the command, and this process ends as the command does.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

NAME = "watch"
HELP = "run a training script unchanged and record it as a run"
#: the folder whose sitecustomize.py watches the script, in the script's own Python
STARTUP = Path(__file__).parents[2] / "engine" / "observed" / "watched" / "startup"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench watch``."""
    parser.add_argument("--name", help="name of the run (default: that of the script)")
    parser.add_argument("words", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="the command, after two dashes")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code, or ends by the signal that ended it.

    Raises ``ConfigError`` when there is no such command.
    """
    from workbench.errors import ConfigError
    from workbench.rundir.directory import home, reserve
    from workbench.terminal.child_process import end_by, run_child

    words = arguments.words
    if words[:1] != ["--"] or not words[1:]:
        arguments.parser.error("put two dashes before the command: workbench watch -- python train.py")
    command = words[1:]
    program = shutil.which(command[0])
    if program is None:
        raise ConfigError(f"there is no program {command[0]!r}: give its path, or activate its environment")
    name = arguments.name or name_of(command)
    path = reserve(name)
    print(f"workbench watch: run directory: {path}", file=sys.stderr, flush=True)
    places = [str(STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("WORKBENCH_WATCH")},
        "PYTHONPATH": os.pathsep.join(places),
        "WORKBENCH_HOME": str(home()),
        "WORKBENCH_WATCH": str(path),
        "WORKBENCH_WATCH_NAME": name,
    }
    try:
        status = run_child(program, command, environment, pid_name="WORKBENCH_WATCH_PID")
    except OSError as error:
        path.rmdir()
        raise ConfigError(f"{program} cannot be run: {error.strerror}") from error
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        end_by(-code)
    if code > 0:
        from workbench.run.session_log import record_exit_code

        record_exit_code(path, code)
    return code


def name_of(command: list[str]) -> str:
    """The name of a run of this command: that of its script."""
    script = next((word for word in command if word.endswith(".py")), command[0])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(script).stem).strip("-._")[:64] or "watched"

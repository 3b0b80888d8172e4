"""Train a spec file (TOML) or a recipe without a notebook, as %dist_train does. Flags win over the file.

The spec.toml of a run directory trains that run again, with the cell that defined its model. Ctrl-C stops the run after
its step. Exit codes: 0 finished, 1 failed, 2 wrong usage, 3 stopped from elsewhere, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

from workbench.cli.arguments import spec_argument
from workbench.core import flags

if TYPE_CHECKING:
    from workbench.run.api import Run

NAME = "train"
HELP = "train a spec file or a recipe"
STOPPED, INTERRUPTED = 3, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench train``."""
    spec_argument.add_to(parser, "the spec file, or the name of a recipe (not needed with --recipe or --resume)")
    flags.add_to(parser)
    parser.add_argument(
        "--detach", action="store_true", help="return when the ranks train; `workbench attach` shows the run"
    )
    parser.add_argument(
        "--every", type=int, default=0, metavar="N", help="without a terminal, print a line every N steps"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train to the end and take the ranks down; returns the exit code."""
    from workbench.run import api

    spec, options = spec_argument.chosen(
        arguments, ("recipe", "resume"), "nothing to train: pass a spec file, --recipe NAME or --resume RUN"
    )
    if arguments.detach:
        detached = api.train(options, config=spec, detach=True)
        print(f"run directory: {detached.path}\nthe run outlives this terminal: workbench attach {detached.path}")
        return 0
    with spec_argument.ranks_ended():
        started: Run | None = api.train(options, config=spec)
        while started is not None:
            print(f"run directory: {started.path}", flush=True)
            code = _until_ended(started, arguments.every)
            started = started.successor()
        return code


def _until_ended(started: Run, every: int) -> int:
    from workbench.errors import RunError
    from workbench.terminal.follow import follow

    interrupted = False
    try:
        follow(lambda: [started.path], started.ended, steps_per_line=every)
    except KeyboardInterrupt:
        interrupted = True
        print("stopping after this step; press Ctrl-C again to quit at once", flush=True)
        with suppress(RunError):  # it ended at this very moment
            started.stop()
        follow(lambda: [started.path], started.ended, steps_per_line=every)
    started.raise_if_failed()
    print(f"report: workbench report {started.path}")
    return INTERRUPTED if interrupted else STOPPED if started.status == "stopped" else 0

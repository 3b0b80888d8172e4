"""Follow a run that another process started, such as one of --detach, until it ends.

Ctrl-C leaves the run as it is. With --stop the run is asked to save and stop after its step; with --end its processes
are ended at once. Exit codes: 0 finished or left, 1 failed, 3 stopped.
"""

from __future__ import annotations

import argparse

NAME = "attach"
HELP = "follow, stop or end a detached run"
STOPPED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench attach``."""
    parser.add_argument("name", metavar="RUN", nargs="?", help="a run's name or directory (default: newest detached)")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--stop", action="store_true", help="stop the run after its step, as %%dist_stop does")
    actions.add_argument(
        "--end", action="store_true", help="end the processes of the run at once, without a checkpoint"
    )


def run(arguments: argparse.Namespace) -> int:
    """Follow the run to its end; returns the exit code."""
    from workbench.run import detached
    from workbench.terminal.follow import follow

    found = detached.attach(arguments.name)
    print(detached.told(found), flush=True)
    if arguments.end:
        found.end()
        print(f"the processes of {found.name} have ended")
        return STOPPED
    if arguments.stop:
        found.stop()
    try:
        follow(lambda: [found.path], found.ended)
    except KeyboardInterrupt:
        print(f"{found.name} goes on: workbench attach {found.path}")
        return 0
    found.raise_if_failed()
    return STOPPED if found.status == "stopped" else 0

"""The process that owns the ranks of a detached run: ``python -m workbench.run.detached_process RUN FD``.

It starts the ranks, says on the file descriptor FD how that went, and ends when the run, and each branch that takes its
place, has ended. SIGTERM ends it, with its ranks, at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from workbench.cluster.session import Session
from workbench.errors import WorkbenchError
from workbench.run import launch
from workbench.run.api import Run
from workbench.rundir.owner import Owner, outlive_the_notebook


def main(path: Path, reply_fd: int) -> int:
    """Own the run in the directory ``path``; returns the exit code."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal of the notebook is not meant for it
    sys.path[:] = json.load(sys.stdin)
    try:
        outlive_the_notebook()
        Owner.this_process().write(path)
        run = Run(path)
        launch.begin(run, launch.session_for(run.spec))
    except (WorkbenchError, OSError) as error:
        _answer(reply_fd, str(error))
        return 1
    except BaseException as error:
        _answer(reply_fd, f"{type(error).__name__}: {error}")
        raise
    _answer(reply_fd, "")
    _until_all_ended(run)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _answer(reply_fd: int, problem: str) -> None:
    with os.fdopen(reply_fd, "w", encoding="utf-8") as stream:
        stream.write(json.dumps({"problem": problem}) + "\n")


def _until_all_ended(run: Run) -> None:
    following: Run | None = run
    while following is not None:
        while not following.ended():
            time.sleep(0.2)
        following = following.successor()


if __name__ == "__main__":
    try:
        code = main(Path(sys.argv[1]), int(sys.argv[2]))
    finally:
        session = Session.current()
        if session is not None:
            session.down()
    sys.exit(code)

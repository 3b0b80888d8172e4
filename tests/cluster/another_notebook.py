"""A notebook of its own beside that of the tests: ``python -m tests.cluster.another_notebook``.

It brings ranks up, says in a line of JSON what it has and sees of the machine, and ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys

from tests.cluster.preloads import LIGHT
from workbench.cluster.base import private_directory
from workbench.cluster.session import Session
from workbench.run.why import newest_ranks, sessions_of_this_user

if __name__ == "__main__":
    session = Session.up(2, preload=LIGHT)
    memory, _ = private_directory.make(private_directory.MEMORY)  # as for copies of a training's state
    found = {
        "user": os.getuid(),
        "result": session.execute("('theirs', rank)")[1].result,
        "pids": list(session.pids.values()),
        "port": session.master_port,
        "directory": str(session.directory),
        "memory": str(memory),
        "sessions": [str(path) for path in sessions_of_this_user()],
        "newest": str(newest_ranks()),
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()
    session.down()

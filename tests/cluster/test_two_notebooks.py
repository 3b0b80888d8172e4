"""Two notebooks on one machine, of one user or of two, do not meet: ports, directories, files in memory, processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import descendants, still_there
from tests.cluster.preloads import LIGHT
from workbench.cluster.base import private_directory
from workbench.cluster.session import Session
from workbench.run.why import sessions_of_this_user

NOBODY = 65534
#: another user who may read the interpreter's files, wherever they are
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
]


def may_become_another_user() -> bool:
    if shutil.which("setpriv") is None:
        return False
    return subprocess.run([*AS_NOBODY, sys.executable, "-c", ""], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("other_user", [False, True], ids=["one user", "two users"])
def test_two_notebooks_do_not_meet(other_user: bool, fresh: Callable[..., Session]) -> None:
    if other_user and not may_become_another_user():
        pytest.skip("no right to run a process as another user")
    with tempfile.TemporaryDirectory(prefix="wb-") as home:
        os.chmod(tempfile.gettempdir(), 0o1777)  # as /tmp is
        os.chmod(home, 0o777)
        mine = fresh(2)
        mine.push({"kept": "mine"})
        command = [sys.executable, "-m", "tests.cluster.another_notebook"]
        other = subprocess.Popen(
            AS_NOBODY + command if other_user else command,
            env={**os.environ, "HOME": home, "IPYTHONDIR": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert other.stdout is not None and other.stdin is not None
            theirs = json.loads(other.stdout.readline())
            check(mine, theirs, other_user)
            processes = [psutil.Process(pid) for pid in theirs["pids"]]
            mine.down()
            assert all(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)
            again = Session.up(2, preload=LIGHT)  # sweeps what others left, and not what they have
            assert Path(theirs["directory"]).exists() and Path(theirs["memory"]).exists()
            again.down()
            processes = descendants(other.pid)
            os.kill(other.pid, signal.SIGKILL)  # it sweeps nothing
            other.wait()
            assert not still_there(processes)
            private_directory.remove_abandoned(private_directory.MEMORY)
            assert Path(theirs["memory"]).exists() == other_user, "swept by their own user only"
        finally:
            other.kill()
            other.communicate()
            shutil.rmtree(theirs["memory"], ignore_errors=True)


def check(mine: Session, theirs: dict[str, object], other_user: bool) -> None:
    """While both are up."""
    assert theirs["result"] == "('theirs', 1)" and theirs["user"] == (NOBODY if other_user else os.getuid())
    assert mine.execute("kept")[1].result == "'mine'"
    assert not set(mine.pids.values()).intersection(theirs["pids"])  # type: ignore[call-overload]
    assert mine.master_port != theirs["port"] and str(mine.directory) != theirs["directory"]
    for name in ("directory", "memory"):
        found = Path(str(theirs[name])).stat()
        assert stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == theirs["user"]
    seen = {str(path) for path in sessions_of_this_user()}
    both = {str(mine.directory), theirs["directory"]}
    assert seen == ({str(mine.directory)} if other_user else both)
    assert set(theirs["sessions"]) == ({theirs["directory"]} if other_user else both)  # type: ignore[call-overload]
    assert theirs["newest"] == theirs["directory"]

"""Private directories: kept while one of their processes lives, and removed after all have crashed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import has_ended, until
from workbench.cluster.base import private_directory

#: makes a directory, starts a child that holds it too, and says both
HOLDER = """
import os, sys, time
from workbench.cluster.base import private_directory
directory, lock = private_directory.make()
child = os.fork()
if child:
    print(directory, child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wb-") as path:
        monkeypatch.setattr(tempfile, "tempdir", path)
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


def test_a_directory_is_removed_once_all_its_processes_have_crashed(parent: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    name, child = holder.stdout.readline().split()
    directory = Path(name)
    assert directory.parent == parent and directory.stat().st_mode & 0o777 == 0o700
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert private_directory.remove_abandoned(parent) == [], "the child lives"
    os.kill(int(child), signal.SIGKILL)
    assert holder.stdout.read() == ""  # the child's end closes the pipe, and a little later the lock
    until(lambda: has_ended(int(child)))
    mine, lock = private_directory.make()
    try:
        assert not directory.exists() and mine.exists()
        assert private_directory.remove_abandoned(parent) == []
    finally:
        os.close(lock)
    assert private_directory.remove_abandoned(parent) == [mine]


def test_what_is_not_ours_stays(parent: Path, tmp_path: Path) -> None:
    (parent / "workbench-without-a-lock").mkdir()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / private_directory.LOCK_FILE).touch()
    (parent / "workbench-link").symlink_to(theirs)
    (parent / "other").mkdir()
    (parent / "other" / private_directory.LOCK_FILE).touch()
    assert private_directory.remove_abandoned(parent) == []
    assert len(list(parent.iterdir())) == 3 and theirs.exists()

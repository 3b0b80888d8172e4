"""Private temporary directories, each of one process and its heirs. What crashed processes have left is removed.

A process holds a lock on the file ``lock`` of its directory, by a file descriptor that its children inherit. The kernel
releases it when the last of them has ended, however they ended, so a directory that can be locked belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "workbench-"
LOCK_FILE = "lock"
#: the folder whose files are in memory
MEMORY = Path("/dev/shm")
#: characters of the folder that it is in: Linux allows 107 bytes for the path of a Unix socket
_MOST_PARENT = 59


def default_parent() -> Path:
    """Returns the folder for directories whose path has to be short enough for a socket in it."""
    parent = Path(tempfile.gettempdir())
    return parent if len(str(parent)) <= _MOST_PARENT else Path("/tmp")


def of_this_user(parent: Path) -> list[Path]:
    """Returns the directories in ``parent`` that belong to this user, whatever root may read of others'."""
    found = []
    for directory in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if not directory.is_symlink() and directory.stat().st_uid == os.getuid():
                found.append(directory)
    return found


def make(parent: Path | None = None) -> tuple[Path, int]:
    """Make a directory of mode 0700, by default one whose path is short enough for a socket in it, and lock it.

    Returns it with the file descriptor of the lock: whoever holds that, keeps the directory. Directories of this user
    that nobody holds any more are removed first, there and in memory. Raises ``OSError``.
    """
    parent = default_parent() if parent is None else parent
    for place in {parent, MEMORY}:
        remove_abandoned(place)
    while True:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _took(lock) and (directory / LOCK_FILE).exists():  # not removed before it was locked
            return directory, lock
        os.close(lock)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the directories in ``parent`` that this user's crashed processes have left; returns which."""
    removed = []
    for directory in of_this_user(parent):
        try:
            lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # it has no lock (yet), or was removed meanwhile
        try:
            if _took(lock):
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
        finally:
            os.close(lock)
    return removed


def _took(lock: int) -> bool:
    """Take the lock if nobody has it; whether it was taken."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False

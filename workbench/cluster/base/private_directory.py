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
#: characters; Linux allows 107 bytes for the path of a Unix socket
_MAX_PATH = 88


def make() -> tuple[Path, int]:
    """Make a directory of mode 0700 whose path is short enough for a socket in it, and lock it.

    Returns it with the file descriptor of the lock: whoever holds that, keeps the directory. Directories of this user
    that nobody holds any more are removed first. Raises ``OSError``, also when its path would be too long.
    """
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) >= 60:
        parent = Path("/tmp")
    remove_abandoned(parent)
    while True:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if len(str(directory)) > _MAX_PATH:
            directory.rmdir()
            raise OSError(f"the path {directory} is too long for a Unix socket")
        lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _is_locked_by(lock) and (directory / LOCK_FILE).exists():  # not removed before it was locked
            return directory, lock
        os.close(lock)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the directories in ``parent`` that this user's crashed processes have left; returns which."""
    removed = []
    for directory in parent.glob(f"{PREFIX}*"):
        try:
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # it has no lock (yet), or was removed meanwhile
        try:
            if _is_locked_by(lock):
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
        finally:
            os.close(lock)
    return removed


def _is_locked_by(lock: int) -> bool:
    """Take the lock if nobody has it."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False

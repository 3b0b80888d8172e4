"""Commands of a run: the lines of ``control.jsonl``, written and read here and nowhere else.

Who asks for something appends lines; rank 0 says up to which byte all ranks read; the panel and the report read them
all. The file is the audit trail as well.
"""

from __future__ import annotations

import errno
import getpass
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.records import Command
from workbench.errors import RunDirectoryError
from workbench.rundir.directory import CONTROL_FILE

#: several processes write commands to one run: a random number tells them apart, and JSON keeps 53 bits
_ID_BITS = 53
#: seconds that a reader waits for bytes that another host has seen already (a network file system shows them later)
_VISIBLE_S = 30.0


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of the file that is no command, and why: it was written by hand, or by another version."""

    text: str
    reason: str


class CommandReader:
    """Reads the whole lines of a growing ``control.jsonl``. ``offset``: bytes that were read, or are left out."""

    def __init__(self, run: str | Path, offset: int = 0) -> None:
        self.path = Path(run) / CONTROL_FILE
        self.offset = offset
        self._name = str(self.path)
        self._rest = b""

    def size(self) -> int:
        """Bytes of the file; ``offset`` when there is no file."""
        try:
            return os.stat(self._name).st_size
        except OSError:
            return self.offset

    def read(self, end: int | None = None) -> list[Command | BadLine]:
        """The lines between the last call and byte ``end`` (None: the end of the file).

        A line without its newline waits for it. Waits up to 30 s for bytes before ``end`` that are not visible yet.
        """
        last = self.size() if end is None else end
        if last <= self.offset:
            return []
        *lines, self._rest = (self._rest + self._bytes(last)).split(b"\n")
        return [_parsed(line.decode(errors="replace")) for line in lines if line.strip()]

    def _bytes(self, end: int) -> bytes:
        deadline = time.monotonic() + _VISIBLE_S
        while True:
            try:
                with self.path.open("rb") as file:
                    file.seek(self.offset)
                    found = file.read(end - self.offset)
            except OSError:
                found = b""
            if len(found) == end - self.offset or time.monotonic() > deadline:
                self.offset = end
                return found
            time.sleep(0.005)


def offset_after(run: str | Path, time_s: float) -> int:
    """The bytes of the commands that were written up to ``time_s`` (seconds since the epoch)."""
    path = Path(run) / CONTROL_FILE
    offset = read = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        read += len(line)
        found = _parsed(line.decode(errors="replace"))
        if isinstance(found, Command) and found.time > time_s:
            break
        offset = read
    return offset


def _parsed(line: str) -> Command | BadLine:
    try:
        return Command.from_line(line)
    except (ValueError, TypeError, AttributeError) as error:
        return BadLine(line[:200], str(error)[:200])


def new_command(name: str, value: Any) -> Command:
    """A command of this user, now, with a number of its own."""
    return Command(time=time.time(), name=name, value=value, who=getpass.getuser(), id=secrets.randbits(_ID_BITS))


def write_commands(run: Path, commands: Sequence[Command]) -> None:
    """Append commands in one write, so that all of them are read, and take effect, together.

    A last line without its newline, as a full disk leaves one, gets it first; otherwise the next line would be part of
    it. Raises ``RunDirectoryError`` when the file cannot be written.
    """
    path = run / CONTROL_FILE
    text = "".join(command.to_line() for command in commands).encode()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text
            if os.write(descriptor, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunDirectoryError(
            f"{path} cannot be written ({error.strerror}), so no command reaches the ranks: "
            "session.interrupt() or %dist_down ends them"
        ) from error

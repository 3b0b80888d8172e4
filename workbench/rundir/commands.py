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

from workbench.core.columns import Columns
from workbench.core.controls import acts
from workbench.core.records import Command, EventKind
from workbench.errors import RunDirectoryError
from workbench.events.decode import of_rank
from workbench.rundir.directory import CONTROL_FILE

#: several processes write commands to one run: a random number tells them apart, and JSON keeps 53 bits
_ID_BITS = 53
#: seconds that a reader waits for bytes that another host has seen already (a network file system shows them later)
_VISIBLE_S = 30.0


#: a command whose effect stands in the checkpoint that it writes
_MARK = "checkpoint"
#: acts that a restart does not repeat: they change nothing that is trained, or what was trained since
_NOT_REPEATED = {control.name for control in acts()} - {_MARK, "freeze", "unfreeze"}


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


def to_repeat(run: str | Path, events: Columns) -> list[tuple[int, Command]]:
    """The settings that commands made and that still hold, in their order, each with the step after which it took
    effect; with ``checkpoint`` commands between them, whose checkpoints hold what was set before.

    ``events``: the table of the run's events. What a rollback or a restart has undone is left out.
    """
    written = {each.id: each for each in CommandReader(run).read() if isinstance(each, Command)}
    found: list[tuple[int, Command]] = []
    for event in of_rank(events, 0):
        if event.kind == EventKind.CHECKPOINT and event.name == "restored":
            found = [(step, command) for step, command in found if step < event.step]
        elif event.kind == EventKind.CONTROL and event.command in written and event.name not in _NOT_REPEATED:
            found.append((event.step, written[event.command]))
    return found


def since(commands: Sequence[tuple[int, Command]], step: int, *, asked: bool) -> list[tuple[int, Command]]:
    """Those of ``to_repeat`` that a checkpoint of ``step`` does not hold. ``asked``: somebody asked for it, so that it
    was written between commands; others are written before those of their step."""
    later = [each for each in commands if each[0] >= step]
    marks = [place for place, (at, command) in enumerate(later) if (at, command.name) == (step, _MARK)]
    begin = marks[-1] + 1 if asked and marks else 0
    return [each for each in later[begin:] if each[1].name != _MARK]


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
            f"{path} cannot be written ({error.strerror}), so commands do not reach the ranks: "
            "session.interrupt() or %dist_down ends them"
        ) from error

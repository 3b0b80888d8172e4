"""Python stacks as ``faulthandler`` writes them: on a signal that asks for them, and on one that ends the process."""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')
#: files of cells: of ipykernel, of IPython, and in a run directory
_CELL = re.compile(r"/ipykernel_\d+/|<ipython-input|/cell\.py$")
#: code that is not the user's
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen", "/workbench/")
_FATAL = "Fatal Python error: "
#: lines that are kept of its stack
_FATAL_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One call of a stack."""

    file: str
    line: int
    function: str

    @property
    def is_of_cell(self) -> bool:
        """Whether the code stands in a cell of the notebook."""
        return bool(_CELL.search(self.file))

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        where = f"line {self.line} of the cell" if self.is_of_cell else f"{Path(self.file).name}:{self.line}"
        function = "" if self.function == "<module>" else f" in {self.function}"
        return f"{where}{function}{': ' + code[:80] if code else ''}"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The calls of a thread, the innermost first. ``is_main``: whether it is the main thread of the rank."""

    is_main: bool
    frames: tuple[Frame, ...]


def parse(text: str, main_thread: int) -> list[Stack]:
    """Parses what ``faulthandler`` writes. ``main_thread``: identity of the main thread, which comes first here."""
    found: list[Stack] = []
    identity = 0
    frames: list[Frame] = []
    for line in [*text.splitlines(), "Thread 0x0"]:
        thread, frame = _THREAD.match(line), _FRAME.match(line)
        if thread:
            if identity and frames:
                found.append(Stack(is_main=identity == main_thread, frames=tuple(frames)))
            identity, frames = int(thread[1], 16), []
        elif frame:
            frames.append(Frame(file=frame[1], line=int(frame[2]), function=frame[3]))
    return sorted(found, key=lambda stack: not stack.is_main)


def users_frame(frames: Sequence[Frame]) -> Frame | None:
    """Returns the innermost call of the user's own code; where there is none, the innermost of all."""
    own = [frame for frame in frames if frame.is_of_cell or not any(part in frame.file for part in _LIBRARIES)]
    return own[0] if own else frames[0] if frames else None


def without_other_threads(text: str) -> str:
    """Shortens the report of a fatal signal at the end of ``text`` to the innermost calls of the thread that got it."""
    before, told, report = text.rpartition(_FATAL)
    if not told:
        return text
    reason, _, rest = report.partition("\n")
    current = rest.partition("Current thread ")
    frames = [line for line in current[2].partition("\n\n")[0].splitlines() if not line.startswith("Extension")]
    return (
        "\n".join([f"{before}{told}{reason}", "", f"{current[1]}{frames[0]}", *frames[1:_FATAL_FRAMES]])
        if frames
        else text
    )


def fatal_place(text: str) -> str:
    """Returns where the process was that a fatal signal ended, in words, from the end of its output; "" when not told.

    The thread is the one that got the signal.
    """
    _, told, after = text.rpartition(_FATAL)
    current = re.search(r"Current thread 0x([0-9a-f]+)", after)
    if not told or current is None:
        return ""
    stacks = parse(after, int(current[1], 16))
    frame = users_frame(stacks[0].frames) if stacks and stacks[0].is_main else None
    return "" if frame is None else str(frame)

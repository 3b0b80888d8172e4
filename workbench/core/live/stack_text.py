"""Python stacks as ``faulthandler`` writes them: on a signal that asks for them, and on one that ends the process."""

from __future__ import annotations

import json
import linecache
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')
#: files of cells: of ipykernel, of IPython, and in a run directory
_CELL = re.compile(r"/ipykernel_\d+/|<ipython-input|/cell\.py$")
#: code that is not the user's
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen", "/workbench/")
#: called by a cell of the workbench's own, from which the training begins
_ENTRY = "/workbench/engine/entry.py"
_LINES = "lines of cells"
#: begins of the lines of a report that tell of threads and modules
_OF_STACKS = ("Thread 0x", '  File "', "  ...", "  <no Python frame>", "Extension modules:")
_FATAL = "Fatal Python error: "
#: lines that are kept of its stack
_FATAL_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One call of a stack. ``code``: the line, where it does not stand in a file."""

    file: str
    line: int
    function: str
    code: str = ""

    @property
    def is_of_cell(self) -> bool:
        """Whether the code stands in a cell of the notebook."""
        return bool(_CELL.search(self.file))

    def __str__(self) -> str:
        code = (self.code or linecache.getline(self.file, self.line)).strip()
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
    return next((frame for frame in with_callers(frames) if is_users(frame)), frames[0] if frames else None)


def with_callers(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Returns the calls from the innermost to the outermost that is the user's own, or where the training begins.

    Outside of that are IPython and the process's start; where neither is called, all calls.
    """
    entry = next((place for place, frame in enumerate(frames) if is_entry(frame)), None)
    if entry is not None:
        return frames[:entry]
    own = [place for place, frame in enumerate(frames) if is_users(frame)]
    return frames[: own[-1] + 1] if own else frames


def is_entry(frame: Frame) -> bool:
    """Whether a call is the one from which a training begins."""
    return frame.file.endswith(_ENTRY)


def is_users(frame: Frame) -> bool:
    """Whether a call is of the user's own code."""
    return frame.is_of_cell or not any(part in frame.file for part in _LIBRARIES)


def cell_lines() -> str:
    """Returns the lines of cells that the main thread is in: their code stands in no file that others could read."""
    found, frame = [], sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if _CELL.search(file):
            found.append((file, line, linecache.getline(file, line).strip()))
        frame = frame.f_back
    return json.dumps({_LINES: found})


def with_code(stacks: Sequence[Stack], answer: str) -> list[Stack]:
    """Returns stacks with the lines of cells that stand in an answer of the rank."""
    told = json.loads(answer.partition("\n")[0])
    code = {(file, line): text for file, line, text in told.get(_LINES, ())}
    return [
        replace(each, frames=tuple(replace(f, code=code.get((f.file, f.line), "")) for f in each.frames))
        for each in stacks
    ]


def without_other_threads(text: str) -> str:
    """Shortens the report of a fatal signal at the end of ``text`` to the innermost calls of the thread that got it.

    A thread that runs no Python, such as one of gloo, has no calls; what native code wrote meanwhile is kept.
    """
    before, told, report = text.rpartition(_FATAL)
    if not told:
        return text
    reason, _, rest = report.partition("\n")
    current = rest.partition("Current thread ")
    frames = [line for line in current[2].partition("\n\n")[0].splitlines() if not line.startswith("Extension")]
    if frames:
        return "\n".join([f"{before}{told}{reason}", "", f"{current[1]}{frames[0]}", *frames[1:_FATAL_FRAMES]])
    native = [line for line in rest.splitlines() if line and not line.startswith(_OF_STACKS)]
    return "\n".join([f"{before}{told}{reason}", *native])


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

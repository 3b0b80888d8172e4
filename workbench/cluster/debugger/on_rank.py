"""pdb on a rank: ``breakpoint()`` in a cell, in a training step or in a library stops the rank at a prompt.

Commands come over a socket (``channel``), from the notebook's cell or a terminal, however long that takes.
"""

from __future__ import annotations

import bdb
import contextlib
import ctypes
import linecache
import os
import pdb
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from workbench.cluster.debugger.channel import Leave, Prompt, prompt_path
from workbench.core.live import post_mortem, rank_row
from workbench.core.live.stack_text import Frame, is_entry, is_users

#: the function of IPython that runs the code of a cell: what it calls is the user's
_RUNS_CELL = ("run_code", os.path.join("IPython", "core", "interactiveshell.py"))


class RankDebugger(pdb.Pdb):
    """pdb whose terminal is a ``Prompt``. It stops in code of the user, and in what that calls, only."""

    def __init__(self, prompt: Prompt) -> None:
        terminal: Any = prompt  # it has what pdb calls of a file
        super().__init__(stdin=terminal, stdout=terminal, nosigint=True, readrc=False, skip=["IPython.*"])
        self.prompt = ""  # whoever types sees one of their own
        self._channel = prompt
        self._in_cell = True

    def stop(self, frame: FrameType) -> None:
        """Stops at once in ``frame``, which called ``breakpoint()``; returns when the rank may go on.

        Raises ``BdbQuit`` on the command ``q``, and ``KeyboardInterrupt``.
        """
        self._in_cell = _is_in_cell(frame)
        self.set_trace(frame)
        sys.settrace(None)  # not in this function
        self.interaction(frame, None)
        if self.quitting:
            raise bdb.BdbQuit
        if self._goes_on_tracing:
            sys.settrace(self.trace_dispatch)

    def end(self) -> None:
        """Ends steps and breakpoints, as the cell has ended."""
        sys.settrace(None)
        self.clear_all_breaks()
        self._channel.close()

    @property
    def _goes_on_tracing(self) -> bool:
        """Whether a later line may stop the rank again."""
        return bool(self.breaks) or self.stoplineno != -1

    def interaction(self, frame: FrameType | None, about: Any) -> None:
        """As that of pdb; tells others that the rank is in the debugger."""
        self._channel.place = _place(frame, about)
        self._channel.open()
        row = rank_row.current()
        try:
            with row.aside(rank_row.DEBUGGER) if row is not None else contextlib.nullcontext():
                super().interaction(frame, about)
        except Leave:
            pass_over()
            self.forget()
            self.clear_all_breaks()
            self.set_continue()
        except KeyboardInterrupt:
            self.forget()
            self.end()
            raise KeyboardInterrupt from None  # without the calls of the debugger, which nobody wants to see
        if about is not None or self.quitting or not self._goes_on_tracing:
            self._channel.close()

    def stop_here(self, frame: FrameType) -> bool:
        """Not in the kernel's own code, when the cell's has ended."""
        return super().stop_here(frame) and (not self._in_cell or _is_in_cell(frame.f_back))

    def user_call(self, frame: FrameType, argument_list: Any) -> None:
        """As that of pdb, but not between two statements of a cell, each of which is a call of its own."""
        if not _is_statement(frame):
            super().user_call(frame, argument_list)
        elif self.stop_here(frame):
            self.set_step()

    def user_return(self, frame: FrameType, return_value: Any) -> None:
        """As ``user_call``."""
        if _is_statement(frame):
            self.set_step()
        else:
            super().user_return(frame, return_value)

    def get_stack(self, f: FrameType | None, t: TracebackType | None) -> tuple[list[tuple[FrameType, int]], int]:
        """Without the calls that lead to the user's code: those of the kernel, and of a training."""
        stack, current = super().get_stack(f, t)
        ours = [place for place, (frame, _) in enumerate(stack[:current]) if _runs_cell(frame)]
        begin = ours[-1] + 1 if ours else 0
        frames = [Frame(file=frame.f_code.co_filename, line=line, function="") for frame, line in stack]
        if any(is_entry(frame) for frame in frames):
            users = (place for place in range(begin + 1, current + 1) if is_users(frames[place]))
            begin = next(users, begin)
        return stack[begin:], current - begin

    def format_stack_entry(self, frame_lineno: tuple[FrameType, int], lprefix: str = ": ") -> str:
        """With the line of the cell in place of the file that a cell has in the rank."""
        frame, line = frame_lineno
        text = super().format_stack_entry(frame_lineno, lprefix)
        file = self.canonic(frame.f_code.co_filename)
        if not _is_of_cell(file):
            return text
        return text.replace(f"{file}({line})", f"line {line} of the cell, ", 1).replace(
            "of the cell, <module>()", "of the cell"
        )

    def default(self, line: str) -> None:
        """As that of pdb; what the line assigns is in the frame at once, as the stack is shown from there."""
        super().default(line)
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(self.curframe), ctypes.c_int(0))

    def _cmdloop(self) -> None:
        self.cmdloop()  # an interrupt leaves the debugger

    def do_run(self, arg: str) -> None:
        """Refuses a command that would start the process anew."""
        self.error("a rank cannot be run again from here: run the cell again")

    def do_interact(self, arg: str) -> None:
        """Refuses a command that would read from a terminal."""
        self.error("no terminal: type Python at this prompt, with ! before what looks like a command")

    do_restart = do_run


class _State:
    """The debugger of this process, a rank. ``passes_over``: whether breakpoints of the cell that runs are ignored."""

    def __init__(self) -> None:
        self.debugger: RankDebugger | None = None
        self.passes_over = False
        self.pid = 0
        self.lock = threading.RLock()


_state = _State()


def install(directory: Path, rank: int) -> None:
    """Lets ``breakpoint()`` and ``pdb.set_trace()`` stop this process, a rank. ``directory``: that of the server."""
    _state.pid = os.getpid()
    _state.debugger = RankDebugger(Prompt(prompt_path(directory, rank)))
    sys.breakpointhook = _stop
    pdb.set_trace = _stop


def _stop(*args: object, **options: object) -> None:
    """In place of ``sys.breakpointhook`` and ``pdb.set_trace``."""
    frame = sys._getframe(1)
    debugger = _state.debugger
    if debugger is None or _state.passes_over:
        return
    if os.getpid() != _state.pid:
        where = f"line {frame.f_lineno} in {frame.f_code.co_name}"
        print(
            f"breakpoint() at {where} is passed over: no debugger reaches the processes that a rank starts, such as "
            "workers of a DataLoader (num_workers=0 has none)",
            file=sys.stderr,
        )
        return
    with _state.lock:  # one thread of the rank at a time
        debugger.stop(frame)


def begin_cell() -> None:
    """Breakpoints count again, and what is kept of the last failure is freed."""
    _state.passes_over = False
    post_mortem.free()


def pass_over() -> None:
    """Breakpoints do not count until the next cell. Called in a thread of the rank."""
    _state.passes_over = True


def end_cell() -> None:
    """Nothing stops the rank any more until another breakpoint."""
    if _state.debugger is not None:
        _state.debugger.end()


def look_back() -> None:
    """Opens the debugger where the last cell or training of this rank failed. Returns when it is left."""
    traceback = post_mortem.kept_traceback()
    if traceback is None or _state.debugger is None:
        return
    _state.debugger.reset()
    _state.debugger.interaction(None, traceback)


def failed() -> bool:
    """Returns whether ``look_back`` has anything to show."""
    return post_mortem.kept_traceback() is not None


def _runs_cell(frame: FrameType) -> bool:
    return frame.f_code.co_name == _RUNS_CELL[0] and frame.f_code.co_filename.endswith(_RUNS_CELL[1])


def _is_of_cell(file: str) -> bool:
    return Frame(file=file, line=0, function="").is_of_cell


def _is_statement(frame: FrameType) -> bool:
    """Whether a frame is a statement at the top level of a cell."""
    return frame.f_code.co_name == "<module>" and _is_of_cell(frame.f_code.co_filename)


def _is_in_cell(frame: FrameType | None) -> bool:
    while frame is not None:
        if _runs_cell(frame):
            return True
        frame = frame.f_back
    return False


def _place(frame: FrameType | None, about: Any) -> str:
    traceback = about if isinstance(about, TracebackType) else getattr(about, "__traceback__", None)
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
    if frame is None:
        return ""
    file, line = frame.f_code.co_filename, frame.f_lineno
    return str(Frame(file=file, line=line, function=frame.f_code.co_name, code=linecache.getline(file, line)))

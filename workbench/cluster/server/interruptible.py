"""Interrupts of a rank reach the user's code, and nothing else that its kernel does.

A ``KeyboardInterrupt`` in the kernel's own code, just before or after a cell, would lose the cell's reply, and the rank
would be busy for good. ipykernel itself lets SIGINT through all the while that it handles a message.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from workbench.core.live.collective_row import DIRECTORY


def _path(directory: Path, rank: int) -> Path:
    return directory / f"interrupt-{rank:05d}"


def announce_interrupt(directory: Path, ranks: Iterable[int], sent: float) -> None:
    """Tells ranks when the SIGINT was sent that they get next.

    ``directory``: that of the rank server. ``sent``: ``time.time()`` of the client, which also dates the cells: the
    clock of a rank on another host may differ.
    """
    for rank in ranks:
        new = _path(directory, rank).with_suffix(".new")
        new.write_text(repr(sent))
        new.replace(_path(directory, rank))


class Interruptible:
    """Raises ``KeyboardInterrupt`` in cells and calls of a kernel only.

    An interrupt that comes before the user's code, also one that overtakes the message with the cell, is raised when
    that begins. One that comes after it, or while nothing runs, is dropped, and so is one that was sent before the
    cell. A SIGINT of another origin than the rank server is for what runs. A cell that awaits something is cancelled.

    ``announced``: the file that tells when an interrupt was sent.
    """

    def __init__(self, kernel: Any, announced: Path) -> None:
        self._kernel = kernel
        self._announced = announced
        announced.unlink(missing_ok=True)  # of a rank that died
        self._handles = False  # whether the kernel handles a message
        self._runs = False  # whether the user's code runs
        self._waits = False  # whether an interrupt waits for the user's code to begin
        self._sent = 0.0  # when the message was sent that the kernel handles
        self._dropped = 0.0  # when the interrupt was sent that came while nothing ran
        self._awaiting: asyncio.Future[Any] | None = None  # the cell that runs, if it may await
        self._cancelled = False  # whether an interrupt cancelled that
        self._should_run_async = kernel.shell.should_run_async
        self._run_nodes = kernel.shell.run_ast_nodes
        self._do_apply = kernel.do_apply
        self._show_traceback = kernel.shell.showtraceback
        kernel.shell.run_ast_nodes = self._nodes
        kernel.do_apply = self._apply
        kernel.shell.showtraceback = self._traceback
        kernel.shell.should_run_async = self._decide_async
        kernel._cancel_on_sigint = self._awaited
        kernel.pre_handler_hook = self._begin
        kernel.post_handler_hook = self._end
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        try:
            sent = float(self._announced.read_text())
            self._announced.unlink()
        except FileNotFoundError:
            sent = self._sent
        if not self._handles:
            self._dropped = sent
        elif sent < self._sent:
            pass  # for a cell that has ended
        elif self._runs and (self._awaiting is None or _runs_cell(frame)):
            raise KeyboardInterrupt
        elif self._runs and self._awaiting is not None:  # an exception would end the loop that it waits in
            self._cancelled = True
            self._awaiting.get_loop().call_soon_threadsafe(self._awaiting.cancel)
        else:
            self._waits = True

    def _begin(self) -> None:
        signal.signal(signal.SIGINT, self._interrupt)  # also where a cell has set another handler
        self._sent = datetime.fromisoformat(self._kernel.get_parent("shell")["header"]["date"]).timestamp()
        self._handles = True
        if self._sent < self._dropped:
            self._waits = True
        self._dropped = 0.0

    def _end(self) -> None:
        self._handles = self._waits = False
        signal.signal(signal.SIGINT, self._interrupt)

    def _decide_async(self, *args: Any, **options: Any) -> bool:
        """As ``InteractiveShell.should_run_async``.

        ipykernel 7 looks up the thread that it began in before it runs such a cell, which ipyparallel 9.2 does not set;
        ``_awaited``, which comes next, takes it back.
        """
        decided: bool = self._should_run_async(*args, **options)
        if decided:
            self._kernel.shell_channel_thread = SimpleNamespace(parent_thread=threading.current_thread())
        return decided

    @contextmanager
    def _awaited(self, cell: asyncio.Future[Any]) -> Iterator[None]:
        """As ``IPythonKernel._cancel_on_sigint``: while entered, the kernel waits for a cell that may await."""
        self._kernel.shell_channel_thread = None
        self._awaiting, self._cancelled = cell, False
        try:
            yield
        finally:
            self._awaiting = None

    def _enter(self) -> None:
        """The user's code begins: raises the interrupt that waits for it."""
        self._runs = True
        if self._waits:
            self._waits = False
            raise KeyboardInterrupt

    async def _nodes(self, nodes: list[Any], name: str, *args: Any, result: Any = None, **options: Any) -> bool | None:
        """As ``InteractiveShell.run_ast_nodes``."""
        outer, ended = self._runs, []
        try:
            self._enter()
            ended.append(await self._run_nodes(nodes, name, *args, result=result, **options))
            if self._cancelled and result is not None and isinstance(result.error_in_exec, asyncio.CancelledError):
                result.error_in_exec = KeyboardInterrupt()
        except KeyboardInterrupt:  # before the first line, while a traceback is made, or after the last line
            self._runs = outer
            if not ended:
                interrupt = KeyboardInterrupt()
                if result is not None:
                    result.error_in_exec = interrupt
                self._kernel.shell.showtraceback((KeyboardInterrupt, interrupt, None))
                ended.append(True)
        finally:
            self._runs = outer
        return ended[0]

    def _traceback(self, *args: Any, **options: Any) -> None:
        """As ``InteractiveShell.showtraceback``. The user's code has ended: an interrupt would be taken for an error of
        what makes the traceback."""
        outer, self._runs = self._runs, False
        try:
            self._show_traceback(*args, **options)
        finally:
            self._runs = outer

    def _apply(self, *args: Any) -> Any:
        """As ``IPythonParallelKernel.do_apply``."""
        outer, ended = self._runs, []
        try:
            self._enter()
            ended.append(self._do_apply(*args))
        except KeyboardInterrupt:
            self._runs = outer
            if not ended:
                ended.append(({"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}, []))
        finally:
            self._runs = outer
        return ended[0]


def _runs_cell(frame: FrameType | None) -> bool:
    """Returns whether a frame belongs to a cell's own code, rather than to the loop that waits for what it awaits."""
    while frame is not None:
        if frame.f_code is InteractiveShell.run_code.__code__:
            return True
        frame = frame.f_back
    return False


def load_ipython_extension(shell: Any) -> None:
    """Lets interrupts reach cells of this rank only. It needs the main thread."""
    Interruptible(shell.kernel, _path(Path(os.environ[DIRECTORY]), int(os.environ["RANK"])))

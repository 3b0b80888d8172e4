"""Executes a notebook without a browser, in a kernel of the current Python, with progress in the terminal."""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.utils import ensure_async
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from workbench.core import background
from workbench.errors import WorkbenchError

TAG, INJECTED_TAG = "parameters", "injected-parameters"
#: how long a kernel may take to end its ranks after Ctrl-C, before it is killed (its ranks die with it)
KERNEL_TIMEOUT_S = 20.0
#: how long a kernel that lives may take to start, and the output of a cell to follow its reply, on a busy machine
SLOW_S = 300


class NotebookFailed(WorkbenchError):
    """A notebook did not run to its end; the message names the cell and the error."""


def inject(notebook: NotebookNode, parameters: dict[str, Any]) -> None:
    """Put ``parameters`` into a new cell after the one tagged ``parameters`` (papermill's convention)."""
    if not parameters:
        return
    places = [i for i, cell in enumerate(notebook.cells) if TAG in cell.metadata.get("tags", [])]
    if not places:
        raise NotebookFailed(f"the notebook has no cell tagged {TAG!r}, so {', '.join(parameters)} cannot be set")
    known = _assigned(notebook.cells[places[0]].source)
    unknown = [name for name in parameters if known is not None and name not in known]
    if known is not None and unknown:
        raise NotebookFailed(
            f"the cell tagged {TAG!r} does not set {', '.join(unknown)}, so the notebook would not use it: it sets "
            f"{', '.join(sorted(known)) or 'nothing'}"
        )
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": [INJECTED_TAG]})
    notebook.cells.insert(places[0] + 1, cell)


def _assigned(source: str) -> set[str] | None:
    """Names that a cell sets; None where it is not plain Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


class _Interrupted(RuntimeError):
    """Raised before a cell starts, after Ctrl-C."""


class NotebookExecution:
    """One execution of a notebook in ``folder``; outputs go into the notebook that was given.

    ``cores``: the kernel and its ranks stay on these (None: wherever this process may run). ``run`` does it all;
    ``start``, ``over``, ``finish`` and ``end`` are its parts, for several side by side.
    """

    def __init__(
        self, notebook: NotebookNode, *, folder: Path, environment: dict[str, str], cores: set[int] | None = None
    ) -> None:
        self._notebook = notebook
        self._cores = cores
        self._worker = background.thread(self._work, name="notebook", failed=self._fail)
        self._environment = {**os.environ, **environment, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        self._interrupted = False
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # without kernel directories the only kernel there is is ipykernel's own, which is this Python
        kernels = KernelSpecManager(kernel_dirs=[])
        self._manager = AsyncKernelManager(kernel_name=NATIVE_KERNEL_NAME, kernel_spec_manager=kernels)
        self._client = NotebookClient(
            notebook,
            km=self._manager,
            timeout=None,
            startup_timeout=SLOW_S,
            iopub_timeout=SLOW_S,
            # its notices about transport security are of no use to who runs a demo on this machine
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
            on_cell_start=self._cell_starts,
        )

    def run(self, find_runs: Callable[[], Iterable[Path]]) -> None:
        """Execute all cells, showing the runs that ``find_runs`` gives. ``NotebookFailed``; ``KeyboardInterrupt`` once
        the kernel and its ranks are gone."""
        from workbench.terminal.follow import follow

        self.start()
        try:
            follow(find_runs, self.over)
        except KeyboardInterrupt:
            print("interrupted: ending the notebook and its ranks", flush=True)
            self.end()
            raise
        self.finish()

    def start(self) -> None:
        """Begin, in a thread; returns at once."""
        self._worker.start()

    def over(self) -> bool:
        """Whether the kernel has ended."""
        return not self._worker.is_alive()

    def finish(self) -> None:
        """Once ``over``: raise ``NotebookFailed``, which names the cell and the error, if the notebook failed."""
        if self._failure is not None:
            raise NotebookFailed(_in_words(self._failure, self._notebook)) from self._failure

    def _work(self) -> None:
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread, and of the processes that it starts
        asyncio.run(self._execute())

    def _fail(self, error: BaseException) -> None:
        """Hand an error to the thread that waits (``finish``)."""
        self._failure = error

    async def _execute(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._client.async_execute(
                cleanup_kc=True,
                env=self._environment,
                cwd=self._client.resources["metadata"]["path"],
            )
        finally:
            if self._manager.has_kernel:
                await self._manager.shutdown_kernel(now=True)

    def _cell_starts(self, **_: Any) -> None:
        if self._interrupted:
            raise _Interrupted("interrupted")

    def end(self) -> None:
        """Interrupt the running cell (its run stops after a step), let the kernel end its ranks; then kill it."""
        self._interrupted = True
        try:
            self._ask(self._manager.interrupt_kernel)
            self._worker.join(KERNEL_TIMEOUT_S)
        except KeyboardInterrupt:
            print("killing the kernel", flush=True)
        if self._worker.is_alive():
            self._ask(lambda: self._manager.shutdown_kernel(now=True))
            self._worker.join(KERNEL_TIMEOUT_S)

    def _ask(self, what: Callable[[], Any]) -> None:
        """Run something in the event loop of the kernel."""
        loop = self._loop
        if loop is None or loop.is_closed() or not self._manager.has_kernel:
            return
        asyncio.run_coroutine_threadsafe(ensure_async(what()), loop).result(KERNEL_TIMEOUT_S)


def _in_words(error: BaseException, notebook: NotebookNode) -> str:
    """What failed, where, and what the cell printed last."""
    if isinstance(error, DeadKernelError):
        return "the notebook's kernel died: `workbench doctor` says what the machine lacks (memory?)"
    if not isinstance(error, CellExecutionError):
        return f"the notebook could not be executed: {type(error).__name__}: {error}"
    for number, cell in enumerate(notebook.cells, 1):
        failed = [o for o in cell.get("outputs", []) if o.output_type == "error"]
        if failed:
            first = cell.source.strip().splitlines()[0] if cell.source.strip() else ""
            printed = "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream")
            tail = "\n".join(printed.splitlines()[-12:])
            said = f"\nIt had printed:\n{tail}" if tail else ""
            return f"the notebook failed in cell {number} ({first}): {failed[0].ename}: {failed[0].evalue}{said}"
    return f"the notebook failed: {error.ename}: {error.evalue}"

"""Ranks follow the notebook: before each cell they take its working directory and reload modules that changed on disk.

Ranks outlive the edits of a module, so without this a run would train with the module's earlier code.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.cluster.base.protocol import CELL, FOLLOWS, RANKS, WORK_DIR
from workbench.cluster.debugger import on_rank
from workbench.cluster.server.tracebacks import hide_signal_handlers
from workbench.core.live import current_cell, given_names, post_mortem, rank_row
from workbench.core.live.collective_row import DIRECTORY
from workbench.core.user_code.user_modules import CELL_RANKS, names_imported_from, user_modules

#: the variable of a rank that names the modules that were reloaded before the current cell
RELOADED = "_reloaded_modules"
#: seconds by which the time of a file may lie before the clock when it was written (the kernel's clock ticks)
_CLOCK_TICK_S = 0.01
_IMPORTED_AT = time.time()

#: what tells whether a file changed: its modification time in ns, and its size in bytes
_Stamp = tuple[int, int]


def load_ipython_extension(shell: Any) -> None:
    """Makes the shell of a rank follow the notebook before each cell, and gives cells the names of the rank."""
    shell.ast_transformers.append(Follower(shell))
    shell.events.register("post_run_cell", lambda result: _after_cell(shell, result))
    hide_signal_handlers(shell)
    given_names.give(shell, _names())
    on_rank.install(Path(os.environ[DIRECTORY]), int(os.environ["RANK"]))
    row = rank_row.current()
    if row is not None:
        shell.events.register("pre_execute", lambda: row.enter(rank_row.CELL))
        shell.events.register("post_execute", lambda: row.enter(rank_row.IDLE))


def _after_cell(shell: Any, result: Any) -> None:
    """Keeps the error of the user's cell for the debugger: until the next cell, which frees what its frames hold."""
    on_rank.end_cell()
    error, metadata = result.error_in_exec, shell.get_parent().get("metadata", {})
    if error is not None and metadata.get(FOLLOWS, True):
        post_mortem.keep(error)


def _names() -> dict[str, Any]:
    """Returns the variables that cells find: ``rank``, ``world_size`` and, on ranks of torch, ``device``."""
    names: dict[str, Any] = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    torch = sys.modules.get("torch")
    if torch is not None:
        names["device"] = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return names


class Follower:
    """Runs before each cell of a rank, as a transformer of its syntax tree: these can refuse a cell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._work_dir = os.getcwd()  # of the notebook, when it sent the previous cell
        self._reloader = ModuleReloader(since=_IMPORTED_AT)
        self._cell_started = time.time()

    def visit(self, tree: ast.AST) -> ast.AST:
        """Follows the notebook and returns the cell unchanged.

        Raises ``InputRejected`` when a module that changed cannot be loaded: the cell would run on its earlier code.
        """
        from IPython.core.error import InputRejected

        metadata = self._shell.get_parent().get("metadata", {})
        current_cell.begin(metadata.get(CELL, 0))
        if not metadata.get(FOLLOWS, True):
            return tree
        on_rank.begin_cell()
        given_names.restore(self._shell)
        self._shell.user_ns[CELL_RANKS] = metadata.get(RANKS, [])
        self._change_directory(metadata.get(WORK_DIR, ""))
        self._reloader.note_imports(self._cell_started)
        try:
            names = self._reloader.reload()
        except ImportError as error:
            raise InputRejected(str(error)) from error
        self._shell.user_ns[RELOADED] = names
        if names:
            print(f"reloaded, because the files changed: {', '.join(names)}")
        self._cell_started = time.time()
        return tree

    def _change_directory(self, work_dir: str) -> None:
        """Changes to the notebook's directory when that has changed: a cell may have left it on purpose."""
        if not work_dir or work_dir == self._work_dir:
            return
        try:
            os.chdir(work_dir)
        except OSError as error:
            print(f"this rank stays in {os.getcwd()}: {work_dir}: {error.strerror}", file=sys.stderr)
        self._work_dir = work_dir


class ModuleReloader:
    """Reloads the modules of user files that changed on disk, and the modules that took names from them.

    ``since``: the time, in seconds since the epoch, after which a file that changed counts as edited after its import.
    """

    def __init__(self, since: float) -> None:
        self._stamps: dict[str, _Stamp] = {}
        self._old_objects: dict[Any, Any] = {}  # the superreload of IPython updates these too
        self.note_imports(since)

    def note_imports(self, since: float) -> None:
        """Notes the files of modules that were imported after the time ``since``.

        A file that changed after ``since`` may have changed after its import: its module is reloaded the next time.
        """
        for name, file in user_modules().items():
            stamp = _stamp(file)
            if name not in self._stamps and stamp is not None:
                unedited = stamp[0] < (since - _CLOCK_TICK_S) * 1e9
                self._stamps[name] = stamp if unedited else (0, 0)

    def reload(self) -> list[str]:
        """Reloads what changed and returns the names of the modules, in the order of their imports.

        Functions and classes are updated in place, so that names and objects which hold them follow. Raises
        ``ImportError`` when a module cannot be loaded: the module keeps its earlier code until the next call, which
        tries again.
        """
        from IPython.extensions.autoreload import superreload

        files = user_modules()
        stamps = {name: stamp for name, file in files.items() if (stamp := _stamp(file)) is not None}
        changed = {name for name, stamp in stamps.items() if self._stamps.setdefault(name, stamp) != stamp}
        if not changed:
            return []
        imports = {name: _names_imported_from(sys.modules[name], file, files) for name, file in files.items()}
        reloaded = []
        for name in _in_import_order(changed, imports):
            try:
                _drop_bytecode(files[name])
                superreload(sys.modules[name], partial(_reload, files[name]), self._old_objects)
            except Exception as error:  # the module is the user's: anything
                raise ImportError(
                    f"the module {name} changed on disk and cannot be reloaded: {type(error).__name__}: {error}; "
                    f"correct {files[name]}, or restart the ranks with %dist_down and %dist_up",
                    name=name,
                ) from error
            self._stamps[name] = stamps.get(name, (0, 0))
            reloaded.append(name)
        return reloaded


def _reload(file: str, module: ModuleType) -> ModuleType:
    """Loads a module again: from ``file`` where ``sys.path`` has its folder no more, which a cell may take off."""
    try:
        return importlib.reload(module)
    except ModuleNotFoundError as error:
        spec = importlib.util.spec_from_file_location(module.__name__, file)
        if error.name != module.__name__ or spec is None or spec.loader is None:
            raise
    new = importlib.util.module_from_spec(spec)
    vars(module).update(vars(new))
    spec.loader.exec_module(module)
    return module


def _in_import_order(changed: Iterable[str], imports: Mapping[str, set[str]]) -> list[str]:
    """Returns ``changed`` and all modules that took names from them, each after the modules that it imports.

    ``imports``: module -> the modules that it takes names from. Modules that import one another come in any order.
    """
    affected = set(changed)
    while more := {name for name, sources in imports.items() if sources & affected} - affected:
        affected |= more
    graph = {name: imports.get(name, set()) & affected for name in sorted(affected)}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError:
        return sorted(affected)


def _names_imported_from(module: ModuleType, file: str, modules: Iterable[str]) -> set[str]:
    """Returns those of ``modules`` that the source of ``module`` takes names from."""
    try:
        source = Path(file).read_bytes()
    except OSError:
        return set()  # its reload says so
    return names_imported_from(source, module.__package__).intersection(modules) - {module.__name__}


def _drop_bytecode(file: str) -> None:
    """Deletes the bytecode of a source file: after an edit of equal length within a second, it counts as current."""
    with contextlib.suppress(FileNotFoundError, PermissionError):  # another user's is as old as that user's import
        os.unlink(importlib.util.cache_from_source(file))


def _stamp(file: str) -> _Stamp | None:
    """Returns the stamp of a file, or None when it is gone: a module whose file was deleted keeps its code."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size

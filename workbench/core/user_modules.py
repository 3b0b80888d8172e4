"""Modules of the user: imported from files outside installed packages, the standard library and this project."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

_OWN_PACKAGES = frozenset({"workbench", "magics", "widgets"})

#: the variable of a rank with the ranks that run the current cell
CELL_RANKS = "_cell_ranks"


def user_modules() -> dict[str, str]:
    """Returns the files of the user's imported modules by the modules' names."""
    packages = _package_directories(tuple(sys.path))
    files = {name: _users_file(name, packages) for name in list(sys.modules)}
    return {name: file for name, file in files.items() if file}


def is_users(module: str) -> bool:
    """Whether an imported module is one of the user's, or the cell itself."""
    return module == "__main__" or bool(_users_file(module, _package_directories(tuple(sys.path))))


def _users_file(name: str, packages: tuple[str, ...]) -> str:
    """The file of a module of the user; "" for any other."""
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] in _OWN_PACKAGES:
        return ""
    file = getattr(sys.modules.get(name), "__dict__", {}).get(
        "__file__"
    )  # no ``__getattr__`` of a lazy module is called
    if file and file.endswith(".py") and os.path.isabs(file) and not file.startswith(packages):
        return str(file)
    return ""


def names_imported_from(source: bytes | str, package: str | None, modules: Iterable[str]) -> set[str]:
    """Returns those of ``modules`` that ``source``, of a module in ``package``, takes names from (``from a import b``).

    A source that is not valid Python takes none.
    """
    known = set(modules)
    found: set[str] = set()
    for node in _nodes(source):
        if isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # beyond the top package: it was never executed
                origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)} & known
    return found


def imported_by(source: bytes | str) -> dict[str, str]:
    """Returns the user's modules that ``source`` imports, and all that these import in turn: name -> file."""
    files = user_modules()
    found: dict[str, str] = {}
    waiting: list[tuple[bytes | str, str | None]] = [(source, None)]
    while waiting:
        text, package = waiting.pop()
        names = names_imported_from(text, package, files)
        for node in _nodes(text):
            if isinstance(node, ast.Import):
                names |= {part for alias in node.names for part in _with_parents(alias.name)} & files.keys()
        names |= {part for name in names for part in _with_parents(name)} & files.keys()
        for name in sorted(names - found.keys()):
            found[name] = files[name]
            with contextlib.suppress(OSError):  # its file is gone: it is known by name only
                waiting.append((Path(files[name]).read_bytes(), getattr(sys.modules[name], "__package__", None)))
    return found


def _with_parents(name: str) -> Iterator[str]:
    """``"a.b.c"`` -> ``"a"``, ``"a.b"``, ``"a.b.c"``."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _nodes(source: bytes | str) -> Iterator[ast.AST]:
    try:
        return ast.walk(ast.parse(source))
    except (SyntaxError, ValueError):
        return iter(())  # whoever runs it says so


@functools.lru_cache(maxsize=1)
def _package_directories(path: tuple[str, ...]) -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    directories = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    directories += [*site.getsitepackages(), site.getusersitepackages()]
    directories += [entry for entry in path if Path(entry).name in ("site-packages", "dist-packages")]
    return tuple({os.path.join(each, "") for path in directories for each in (path, os.path.realpath(path))})

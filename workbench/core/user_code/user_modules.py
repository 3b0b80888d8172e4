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
    return _users_own(list(sys.modules))


def is_users(module: str) -> bool:
    """Whether an imported module is one of the user's, or the cell itself."""
    return module == "__main__" or bool(_users_own([module]))


def names_imported_from(source: bytes | str, package: str | None) -> set[str]:
    """Returns what may be modules that ``source``, of a module in ``package``, takes names from.

    Of ``from a import b`` these are ``a`` and ``a.b``. A source that is not valid Python takes none.
    """
    found: set[str] = set()
    for node in _nodes(source):
        if isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # beyond the top package: it was never executed
                origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return found


def imported_by(source: bytes | str) -> dict[str, str]:
    """Returns the user's modules that ``source`` imports, and all that these import in turn: name -> file."""
    found: dict[str, str] = {}
    waiting: list[tuple[bytes | str, str | None]] = [(source, None)]
    while waiting:
        text, package = waiting.pop()
        names = names_imported_from(text, package)
        names |= {alias.name for node in _nodes(text) if isinstance(node, ast.Import) for alias in node.names}
        names = {part for name in names for part in _with_parents(name)}
        files = _users_own(names - found.keys())
        for name in sorted(files):
            found[name] = files[name]
            with contextlib.suppress(OSError):  # its file is gone: it is known by name only
                waiting.append((Path(files[name]).read_bytes(), getattr(sys.modules[name], "__package__", None)))
    return found


def _users_own(names: Iterable[str]) -> dict[str, str]:
    """Those of ``names`` that are imported modules of the user, with their files."""
    packages = _package_directories(tuple(sys.path))
    found = {}
    for name in names:
        file = getattr(sys.modules.get(name), "__dict__", {}).get("__file__")  # calls no ``__getattr__`` of a module
        if name in ("__main__", "__mp_main__") or not (file and file.endswith(".py") and os.path.isabs(file)):
            continue
        if name.partition(".")[0] not in _OWN_PACKAGES and not file.startswith(packages):
            found[name] = file
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

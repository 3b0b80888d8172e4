"""The imports of the project, read from its source: what the architecture test asks its questions about."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("workbench", "widgets", "magics")


@cache
def sources() -> dict[str, Path]:
    """Dotted module name -> file, for every module of the project."""
    return {_module(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    """The parsed source of a module."""
    return parsed(sources()[module])


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, shared by all who look at the source."""
    return ast.parse(path.read_text(encoding="utf-8"))


def called_names(top: ast.AST) -> Iterator[str]:
    """The last name of everything that is called below a node: ``import_module`` of ``importlib.import_module()``."""
    for node in ast.walk(top):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id


@cache
def imported(module: str, *, at_module_level: bool = False) -> frozenset[str]:
    """Dotted names that a module imports.

    Names of modules of the project are whole (``from workbench.core import mesh`` imports ``workbench.core.mesh``). All
    imports count, those within functions and ``if TYPE_CHECKING`` too; ``at_module_level``: only those that run when
    the module is imported.
    """
    path = sources()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(_imports(tree(module), package, at_module_level))


@cache
def graph(*, at_module_level: bool = False) -> dict[str, set[str]]:
    """Module -> modules of the project that it imports."""
    known = sources()
    return {
        module: {name for name in imported(module, at_module_level=at_module_level) if name in known and name != module}
        for module in known
    }


def room(module: str) -> str:
    """The room of a module: its folder, or its own name where it stands at the top of ``workbench``."""
    path = sources()[module]
    own = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return module if own == "workbench" else own


def circles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of more than one node)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    unfinished: set[str] = set()
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        path.append(node)
        unfinished.add(node)
        for other in edges.get(node, ()):
            if other not in number:
                visit(other)
            if other in unfinished:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == number[node]:
            group = path[path.index(node) :]
            del path[path.index(node) :]
            unfinished.difference_update(group)
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in number:
            visit(node)
    return found


def reached(start: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    """Every node that can be reached from ``start``, with ``start`` itself."""
    seen, waiting = {start}, [start]
    while waiting:
        for other in edges.get(waiting.pop(), ()):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def within(name: str, package: str) -> bool:
    """Whether a dotted name is ``package`` or in it."""
    return name == package or name.startswith(f"{package}.")


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(node: ast.AST, package: str, at_module_level: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parents = package.split(".")
            up = parents[: len(parents) - child.level + 1] if child.level else []
            base = ".".join([*up, *filter(None, [child.module])])
            for alias in child.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in sources() else base
        elif at_module_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif at_module_level and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(other, package, at_module_level)
        else:
            yield from _imports(child, package, at_module_level)

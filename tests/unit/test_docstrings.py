"""Every public module, class, function and method says what it is for.

Public: no part of its name begins with an underscore. A method that overrides one of a class of ours says it there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("workbench", "widgets", "magics") for path in (ROOT / package).rglob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Public definitions of a module, with those of its public classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


def classes() -> dict[str, ast.ClassDef]:
    """Every class of ours by its name."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES)
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


CLASSES = classes()


def inherited(kind: ast.ClassDef, method: str) -> bool:
    """Whether a base class of ours says what a method is for."""
    for base in kind.bases:
        found = CLASSES.get(ast.unparse(base).partition("[")[0].rpartition(".")[2])
        if found is None or found is kind:
            continue
        own = next((n for n in found.body if isinstance(n, Definition) and n.name == method), None)
        if (own is not None and ast.get_docstring(own)) or inherited(found, method):
            return True
    return False


def silent(path: Path) -> list[str]:
    """Names in a file that say nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    named = dict(definitions(tree.body))
    for name, node in named.items():
        owner = named.get(name.rpartition(".")[0])
        if not ast.get_docstring(node) and not (isinstance(owner, ast.ClassDef) and inherited(owner, node.name)):
            found.append(name)
    return found


def test_there_is_something_to_check() -> None:
    assert sum(len(list(definitions(ast.parse(path.read_text()).body))) for path in SOURCES) > 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_says_what_it_is_for(path: Path) -> None:
    assert silent(path) == []

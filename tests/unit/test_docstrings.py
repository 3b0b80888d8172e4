"""Docstrings where there is something to say: what a module is for, and what a public definition of some size does.

Public: no part of its name begins with an underscore. Nothing is asked of a definition that says all there is to say by
its name and its signature: of at most ``SHORT`` lines, without an error that it raises, or a property, or a method that
overrides one of a class of ours, which says it there. What raises an error says when.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.unit.imports import ROOT, parsed, sources

SOURCES = list(sources().values())
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
#: lines of a body that need no explanation
SHORT = 5


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Public definitions of a module, with those of its public classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class of ours by its name, which several may have."""
    found: dict[str, list[ast.ClassDef]] = {}
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


@cache
def capabilities() -> list[str]:
    """The protocols of what a strategy may do, which a strategy need not name as its bases."""
    path = ROOT / "workbench" / "engine" / "base" / "capabilities.py"
    return [node.name for node in parsed(path).body if isinstance(node, ast.ClassDef)]


def is_inherited(kind: ast.ClassDef, method: str) -> bool:
    """Whether a base class of ours, or of a strategy the protocol of a capability, defines a method."""
    bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in kind.bases]
    for base in [*bases, *(capabilities() if "Strategy" in bases else [])]:
        for found in classes().get(base, []):
            if found is kind:
                continue
            if any(isinstance(n, Definition) and n.name == method for n in found.body) or is_inherited(found, method):
                return True
    return False


def needs_words(node: Definition) -> bool:
    """Whether a definition has more to say than its name and signature do."""
    if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
        return False
    if not isinstance(node, ast.ClassDef) and any(isinstance(n, ast.Raise) and n.exc for n in ast.walk(node)):
        return True
    return (node.end_lineno or 0) - node.body[0].lineno + 1 > SHORT


def silent(path: Path) -> list[str]:
    """Names in a file that say nothing although there is something to say."""
    tree = parsed(path)
    found = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    named = dict(definitions(tree.body))
    for name, node in named.items():
        if ast.get_docstring(node) or not needs_words(node):
            continue
        owner = named.get(name.rpartition(".")[0])
        if not (isinstance(owner, ast.ClassDef) and is_inherited(owner, node.name)):
            found.append(name)
    return found


def test_there_is_something_to_check() -> None:
    assert sum(needs_words(node) for path in SOURCES for _, node in definitions(parsed(path).body)) > 200


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("def size(self): return len(self.items)", False),
        ("def check(n):\n    if n: raise ValueError(n)", True),
        ("@property\ndef peak(self):\n" + "    x = 1\n" * 9, False),
        ("def fold(a):\n" + "    x = 1\n" * 9, True),
        ("class E(Exception): pass", False),
        ("class Pace:\n" + "    x: int = 1\n" * 9, True),
    ],
)
def test_what_is_asked_for_words(source: str, asked: bool) -> None:
    (node,) = ast.parse(source).body
    assert isinstance(node, Definition) and needs_words(node) is asked


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_has_something_to_say_says_it(path: Path) -> None:
    assert silent(path) == []

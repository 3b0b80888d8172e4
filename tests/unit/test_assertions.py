"""Every test asserts something: by itself, or by a helper of the tests that does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.unit.imports import parsed

TESTS = Path(__file__).parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef


#: methods of the tests' own helpers that fail a test by themselves
WAITING_METHODS = {"pump"}


def functions(tree: ast.Module) -> Iterator[Function]:
    """All functions and methods of a module, those inside of others too."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


@cache
def called(function: Function) -> frozenset[str]:
    """Names of the plain functions that are called."""
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return frozenset(call.id for call in calls if isinstance(call, ast.Name))


@cache
def asserts_itself(function: Function) -> bool:
    """Whether it has an ``assert``, or calls ``pytest.raises``, ``warns``, ``fail``, or a library's ``assert_...``."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, of = node.func.attr, node.func.value
            is_pytests = name in ("raises", "warns", "fail") and isinstance(of, ast.Name) and of.id == "pytest"
            if is_pytests or name.startswith("assert_") or name in WAITING_METHODS:
                return True
    return False


def asserting(trees: list[ast.Module]) -> set[str]:
    """Names of plain functions of the tests that assert, or call one that does."""
    helpers = [node for tree in trees for node in tree.body if isinstance(node, Function)]
    helpers = [helper for helper in helpers if not helper.name.startswith("test_")]
    found = {helper.name for helper in helpers if asserts_itself(helper)}
    while more := {helper.name for helper in helpers if called(helper) & found} - found:
        found |= more
    return found


def silent(trees: dict[str, ast.Module]) -> list[str]:
    """Tests that nothing but an exception can make fail."""
    helpers = asserting(list(trees.values()))
    return [
        f"{file}::{function.name}"
        for file, tree in trees.items()
        for function in functions(tree)
        if function.name.startswith("test_") and not asserts_itself(function) and not called(function) & helpers
    ]


def test_every_test_asserts_something() -> None:
    files = [file for file in TESTS.rglob("*.py") if "benchmarks" not in file.parts]
    trees = {str(file.relative_to(TESTS)): parsed(file) for file in files}
    assert silent(trees) == []


@pytest.mark.parametrize(
    ("body", "is_silent"),
    [
        ("run()", True),
        ("assert run()", False),
        ("with pytest.raises(ValueError): run()", False),
        ("np.testing.assert_allclose(run(), 1)", False),
        ("helper()", False),
        ("deeper()", False),
        ("Thing().helper()", True),
        ("page.pump(ready)", False),
    ],
)
def test_the_check_itself(body: str, is_silent: bool) -> None:
    helpers = "def helper():\n    assert run()\ndef deeper():\n    helper()\n"
    tree = ast.parse(f"{helpers}def test_it():\n    {body}\n")
    assert silent({"a.py": tree}) == (["a.py::test_it"] if is_silent else [])

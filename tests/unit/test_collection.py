"""Collecting the tests is quick: each process of a run collects them all."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from tests import conftest


def test_test_modules_import_nothing_heavier_than_torch() -> None:
    """Such an import belongs into the test, or into a module that only ranks import."""
    assert conftest.heavy_imports == {}


def test_a_heavy_import_is_told_with_the_file_that_brought_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "heavy_imports", {})
    monkeypatch.setattr(conftest, "HEAVY", ("slow_framework",))
    for nodeid, module in [("tests/a.py", "quick"), ("tests/b.py", "slow_framework"), ("tests/c.py", "quick")]:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        conftest.pytest_collectreport(cast(Any, SimpleNamespace(nodeid=nodeid)))
    assert conftest.heavy_imports == {"slow_framework": "tests/b.py"}


def test_compiled_modules_are_kept() -> None:
    assert not sys.dont_write_bytecode

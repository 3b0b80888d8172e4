"""The architecture, executable: which package may import which, and how long a file may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("workbench", "widgets", "magics")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "colossalai", "transformers"}
LONGEST = 400


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, inside_functions: bool) -> Iterator[str]:
    """Dotted names that a file imports; ``if TYPE_CHECKING`` blocks import nothing."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                up = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                base = ".".join([*up, *filter(None, [child.module])])
                yield base
                yield from (f"{base}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from walk(other)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not inside_functions:
                continue
            else:
                yield from walk(child)

    return walk(parsed(path))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def offences(where: str, forbidden: set[str], *, inside_functions: bool = True) -> list[str]:
    """``file imports name`` for each import of a forbidden package by a module in ``where``."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if within(module_of(path), where)
        for name in imports(path, inside_functions=inside_functions)
        if any(within(name, package) for package in forbidden)
    ]


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30
    assert "torch" in set(imports(ROOT / "workbench/engine/frameworks/torch_common/device.py", inside_functions=False))


@pytest.mark.parametrize(
    ("where", "forbidden"),
    [
        ("workbench", {"widgets"}),
        ("widgets", {"magics"}),
        ("workbench.cluster", {"workbench.engine", "widgets", "magics"}),
        ("workbench.engine", {"workbench.cluster", "workbench.cluster.session", "widgets", "magics", "ipyparallel"}),
        ("workbench.plots", {"workbench.report", "workbench.cluster", "workbench.engine", "workbench.cluster.session"}),
        (
            "workbench.report",
            {"workbench.cluster", "workbench.engine", "workbench.cluster.session", "workbench.run.api"},
        ),
        ("workbench.telemetry", {"workbench.plots", "workbench.run.api", "workbench.engine", "workbench.cluster"}),
    ],
)
def test_imports_run_one_way(where: str, forbidden: set[str]) -> None:
    assert offences(where, forbidden) == []


def test_only_load_ipython_extension_reaches_the_magics() -> None:
    assert offences("workbench", {"magics"}, inside_functions=False) == []
    assert {line.split()[0] for line in offences("workbench", {"magics"})} <= {"workbench/__init__.py"}


def test_only_the_engine_imports_the_frameworks_at_module_level() -> None:
    found = [line for package in PACKAGES for line in offences(package, HEAVY, inside_functions=False)]
    assert [line for line in found if not line.startswith("workbench/engine/")] == []


def test_only_the_engine_and_the_recipes_import_them_at_all() -> None:
    found = [line for package in PACKAGES for line in offences(package, HEAVY)]
    assert [line for line in found if not line.startswith(("workbench/engine/", "workbench/recipes/"))] == []


def test_records_config_and_mesh_stand_alone() -> None:
    for name in ("core.records", "core.mesh", "errors"):
        assert offences(f"workbench.{name}", {"workbench"}) == []
    assert {line.split()[-1].split(".")[1] for line in offences("workbench.core.config", {"workbench"})} <= {
        "errors",
        "core",
    }


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_file_stays_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines: it has two reasons to change, split it there"

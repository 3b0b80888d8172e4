"""Inspects the source of a ``%%dist_train`` cell without running it: which names it defines, and which are missing."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator

from workbench.errors import ConfigError

#: a cell must define at least one name of each entry
REQUIRED_NAMES = (
    ("model", "pretrained"),
    ("optimizer",),
    ("dataset", "dataloader"),
    ("loss_fn", "criterion", "train_step"),
)
#: what is logged during an evaluation is a curve of this name and its own
EVALUATION = "eval/"
#: the name of a function that makes the steps of a training itself
OWN_STEP = "train_step"


def check_cell(source: str) -> None:
    """Raise ``ConfigError`` for a cell that lacks a required name or is not valid Python.

    A cell with a star import passes, as its names are unknown.
    """
    names = names_of(source)
    if "*" in names:
        return
    known = names | {"optimizer"} if OWN_STEP in names and "optimizers" in names else names
    missing = [_missing(choice, names) for choice in REQUIRED_NAMES if not known.intersection(choice)]
    if missing:
        raise ConfigError(
            f"the cell does not define {', '.join(missing)}: a %%dist_train cell defines model (or pretrained), "
            "optimizer, dataset or dataloader, and loss_fn(model, batch), criterion or "
            "train_step(model, optimizer, batch)",
            field="cell",
        )


def _missing(choice: tuple[str, ...], names: set[str]) -> str:
    """Describe a missing name, with a similar name that the cell defines: ``"optimizer (optimiser?)"``."""
    near = [found for name in choice for found in difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.75)]
    return " or ".join(choice) + (f" ({near[0]}?)" if near else "")


def names_of(source: str) -> set[str]:
    """Return the names that a cell defines at its top level. Raises ``ConfigError``, with the line, for a syntax error.

    ``"*"`` stands for a star import.
    """
    try:
        return set(_defined_names(ast.parse(source)))
    except SyntaxError as error:
        line = (error.text or "").rstrip()
        place = f"\n  {line}\n  {' ' * max(0, (error.offset or 1) - 1)}^" if line else ""
        raise ConfigError(
            f"line {error.lineno} of the cell is not valid Python: {error.msg}{place}", field="cell"
        ) from error


def logged_names(source: str) -> set[str] | None:
    """The names of values that a cell logs with ``log("name", ...)``; None where they are made while it trains."""
    tree = ast.parse(source)
    names: set[str] = set()
    understood: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="log") as function, args=[ast.Constant(value=str() as name), *_]):
                names |= {name, EVALUATION + name}
                understood.add(function)
            case ast.Attribute(value=ast.Name(id="log") as function, attr="image" | "text"):
                understood.add(function)
    others = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "log"]
    is_whole = all(node in understood for node in others) and OWN_STEP not in _defined_names(tree)
    return names if is_whole else None


def _defined_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that a module defines at its top level; ``"*"`` for a star import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            for alias in child.names:
                yield (alias.asname or alias.name).split(".")[0]
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif not isinstance(child, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            yield from _defined_names(child)

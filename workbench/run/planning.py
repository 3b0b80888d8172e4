"""From what a person asked to a checked spec: pure decisions, made before a rank does anything."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from typing import Any

from workbench.core.config import TrainSpec, check_capabilities, check_types
from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework
from workbench.core.recipe import check_plan, recipe
from workbench.errors import ConfigError, format_ranks

#: what the cell form has to define: each entry is satisfied by one of its names
REQUIRED_NAMES = (("model",), ("optimizer",), ("dataset", "dataloader"), ("loss_fn", "criterion"))


def resolve(options: dict[str, Any], *, ranks_up: int, default_ranks: int, cell: str | None = None) -> TrainSpec:
    """The spec of a run from the options a person gave, flat (those absent or None take their defaults).

    ``ranks``: as asked, else the ranks that are up, else ``tp * pp`` or ``default_ranks``, whichever is larger. A
    recipe fills in the rest from its size's defaults; a ``cell`` with a dataloader has a batch size of its own, which
    is 0 in the spec. Raises ``ConfigError``.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    check_types(asked)
    if cell is not None and asked.get("recipe"):
        raise ConfigError("a cell defines its own model: leave --recipe out, or use the line form", field="--recipe")
    if cell is None and not asked.get("recipe"):
        raise ConfigError(
            "what to train? pass --recipe NAME (or --config FILE), or define a model in a %%dist_train cell",
            field="--recipe",
        )
    if cell is None:
        chosen = recipe(asked["recipe"])
        size = asked["size"] = asked.get("size") or chosen.default_size
        chosen.shape(size)
        asked = {**chosen.defaults[size], **asked}
        asked.setdefault("name", chosen.name)
    if cell is not None and "dataloader" in names_of(cell):
        asked["batch_size"] = 0
    elif asked.get("batch_size") == 0:
        raise ConfigError("--batch-size must be a whole number of at least 1, not 0", field="--batch-size")
    chosen_framework = framework(asked.get("framework", DEFAULT_FRAMEWORK))
    if "plugin" not in asked:
        split = [name for name in ("tp", "pp") if asked.get(name, 1) > 1]
        asked["plugin"] = chosen_framework.plugin_with(split).name
    if asked.get("pp", 1) > 1:
        asked.setdefault("micro_batches", asked["pp"])
    if "ranks" not in asked:
        asked["ranks"] = _fitting(asked, ranks_up or default_ranks)
    spec = TrainSpec.from_options(asked)
    check_capabilities(spec)
    if cell is None:
        check_plan(spec)
    return spec


def _fitting(asked: dict[str, Any], most: int) -> int:
    """Ranks when nobody said how many: at most ``most``, a multiple of tp * pp, and the batch can be cut into dp."""
    block = max(1, int(asked.get("tp", 1))) * max(1, int(asked.get("pp", 1)))
    pieces = max(1, int(asked.get("accumulate", 1))) * max(1, int(asked.get("micro_batches", 1)))
    batch = int(asked.get("batch_size", TrainSpec.batch_size))
    fits = [dp for dp in range(1, most // block + 1) if batch % (dp * pieces) == 0]
    return block * max(fits, default=1)


def check_ranks(spec: TrainSpec, *, ranks_up: int) -> None:
    """Refuse a run for which too few ranks are up: ``ConfigError``."""
    if ranks_up and spec.plan.ranks > ranks_up:
        raise ConfigError(
            f"-n {spec.plan.ranks} ({spec.plan.mesh.describe()}) but {format_ranks(range(ranks_up))} "
            f"{'are' if ranks_up > 1 else 'is'} up: run %dist_up -n {spec.plan.ranks} first, or pass "
            f"-n {ranks_up}",
            field="--nproc-per-node",
        )


def check_cell(source: str) -> None:
    """Refuse a cell that cannot train: ``ConfigError`` with the line that is no Python, or naming what is missing.

    Where both of a pair are there, ``dataloader`` (made from the dataset) and ``loss_fn`` (it calls criterion) count.
    """
    names = names_of(source)
    if "*" in names:
        return
    missing = [_missing(choice, names) for choice in REQUIRED_NAMES if not names.intersection(choice)]
    if missing:
        raise ConfigError(
            f"the cell does not define {', '.join(missing)}: a %%dist_train cell defines model, optimizer, dataset or "
            "dataloader, and loss_fn(model, batch) or criterion",
            field="cell",
        )


def _missing(choice: tuple[str, ...], names: set[str]) -> str:
    """``"optimizer (optimiser?)"``: what is not there, and what is nearly its name."""
    near = [found for name in choice for found in difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.75)]
    return " or ".join(choice) + (f" ({near[0]}?)" if near else "")


def names_of(source: str) -> set[str]:
    """Names that a cell binds at its top level; ``ConfigError`` with the line that is no Python."""
    try:
        return set(_bound_names(ast.parse(source)))
    except SyntaxError as error:
        line = (error.text or "").rstrip()
        place = f"\n  {line}\n  {' ' * max(0, (error.offset or 1) - 1)}^" if line else ""
        raise ConfigError(f"line {error.lineno} of the cell is no Python: {error.msg}{place}", field="cell") from error


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Names that running a module binds at its top level; ``"*"`` for a star import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            for alias in child.names:
                yield (alias.asname or alias.name).split(".")[0]
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        elif not isinstance(child, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            yield from _bound_names(child)

"""What a person asked: a spec file, the cell beside it, and flags that win over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.core.config import check_types, read_spec_options
from workbench.rundir.directory import CELL_FILE


def request(
    file: str | Path | None, flags: dict[str, Any], *, cell: str | None = None
) -> tuple[dict[str, Any], str | None]:
    """Options of the run, and the source of the cell that defines its model (None: a recipe does).

    ``flags`` win over the spec ``file``. The ``spec.toml`` of a run whose model was a cell trains with that cell, which
    stands beside it, unless ``cell`` is given here. Raises ``ConfigError`` and ``SchemaError`` as the file deserves.
    """
    options = merged(read_spec_options(file), flags) if file is not None else dict(flags)
    if not options.get("recipe"):
        options.pop("recipe", None)
        beside = Path(file).expanduser().parent / CELL_FILE if file is not None else None
        if cell is None and beside is not None and beside.is_file():
            cell = beside.read_text(encoding="utf-8")
    return options, cell


def merged(given: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A spec's options and flags that win: what they leave no room for in the spec's plan falls back to its default.

    ``--plugin zero1`` leaves no room for a spec's tp, pp and micro_batches; ``--tp 2`` or ``--pp 2`` make a spec's
    ``ddp`` hybrid; ``--pp 1``, or more stages than micro_batches, cuts the batch anew.
    """
    check_types(given)
    left = dict(given)
    if "plugin" in flags and flags["plugin"] != "hybrid":
        for name in ("tp", "pp", "micro_batches"):
            left.pop(name, None)
    elif any(flags.get(name, 1) > 1 for name in ("tp", "pp")) and left.get("plugin") != "hybrid":
        left.pop("plugin", None)
    if "pp" in flags and (flags["pp"] == 1 or left.get("micro_batches", 1) < flags["pp"]):
        left.pop("micro_batches", None)
    return {**left, **flags}

"""Going on from a checkpoint in another run: whose options, which cell, from which step."""

from __future__ import annotations

from typing import Any

from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.errors import ConfigError, RunDirectoryError
from workbench.rundir import checkpoints
from workbench.rundir.directory import CELL_FILE
from workbench.rundir.state import find

#: options that are a run's own affair, not inherited
_OWN = ("name", "resume")


def resumed(options: dict[str, Any], cell: str | None) -> tuple[dict[str, Any], str | None]:
    """Options and cell of a run that is to go on from a checkpoint; unchanged without ``resume``.

    What the options leave open comes from the spec of the run that wrote the checkpoint (clip and accumulation as they
    were set by then), so does the cell; ``resume`` becomes its directory and step. ``steps`` counts from that run's
    beginning. ``ConfigError`` when there is no such run or checkpoint, or nothing is left to train.
    """
    if not options.get("resume"):
        return options, cell
    name, step = checkpoints.split(options["resume"])
    try:
        run = find(name or None)
    except RunDirectoryError as error:
        raise ConfigError(f"--resume {options['resume']}: {error}", field="--resume") from error
    path = checkpoints.find(run, step)
    in_force = checkpoints.read_index(path)["state"]["trainer"]["settings"]["values"]
    done = checkpoints.step_of(path)
    before = TrainSpec.from_options(read_spec_options(run / SPEC_FILE))
    asked = {name: value for name, value in options.items() if value is not None}
    inherited = {key: value for key, value in before.options().items() if key not in _OWN and value is not None}
    if cell is None and "recipe" not in asked and not before.recipe:
        cell = (run / CELL_FILE).read_text(encoding="utf-8")
    merged = {**inherited, **in_force, "name": before.name, **asked, "resume": f"{run}@{done}"}
    _fit_plan(merged, asked)
    if cell is not None:
        merged.pop("recipe", None)
        if "lr" not in asked:
            merged.pop("lr", None)
    if merged["steps"] <= done:
        raise ConfigError(
            f"--resume {name}@{done}: --steps {merged['steps']} are done already: pass --steps more than {done}",
            field="--steps",
        )
    return merged, cell


def _fit_plan(merged: dict[str, Any], asked: dict[str, Any]) -> None:
    """Another plugin does without what belonged to the old plan only."""
    if "plugin" in asked and asked["plugin"] != "hybrid":
        for name in ("tp", "pp", "micro_batches"):
            if name not in asked:
                merged[name] = 1
    elif ("tp" in asked or "pp" in asked) and "plugin" not in asked:
        merged["plugin"] = "hybrid"
    if asked.get("pp", 1) > 1 and "micro_batches" not in asked:
        merged["micro_batches"] = max(merged["micro_batches"], asked["pp"])

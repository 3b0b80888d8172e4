"""From wishes to a spec: the one place where flags, a spec file, a resumed run and a branch become a ``TrainSpec``.

Pure decisions, made before a rank does anything. Wishes are flat options as people give them (names of
``TrainSpec``). Flags, or the options given in Python, win over a spec file, both win over the run that is resumed or
branched, and a recipe's defaults are below all of them: one is laid over another by ``merged``. What is still open then
takes its default in ``_completed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.config import SPEC_FILE, TrainSpec, check_capabilities, check_types, read_spec_options
from workbench.core.flags import FLAGS
from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework
from workbench.core.recipe import check_plan, recipe
from workbench.errors import ConfigError, RunDirectoryError, format_ranks
from workbench.run.cell_source import check_cell, names_of
from workbench.rundir import checkpoints
from workbench.rundir.directory import CELL_FILE
from workbench.rundir.state import find

#: options that say how a model is split over ranks, which some plugins take
_SPLIT = ("tp", "pp")
#: settings that a checkpoint keeps as they were set while the run trained
_IN_FORCE = ("clip", "accumulate")


def typed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Texts read as the flags of the same names read them. ``ConfigError`` for a text that is no such value."""
    kinds = {flag.option: flag.kind or _switch for flag in FLAGS}
    found = {}
    for name, value in changes.items():
        try:
            found[name] = kinds[name](value) if isinstance(value, str) and name in kinds else value
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{name}={value!r} is no value for --{name.replace('_', '-')}", field=name) from error
    return found


def _switch(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def merged(base: Mapping[str, Any], wishes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``wishes`` laid over it. What the wishes leave no room for in the base's plan is left out.

    A wished plugin leaves no room for options that it does not take (``--plugin zero1`` for a base's tp). A wished
    split leaves no room for a plugin that does not take it (``--tp 2`` for ``ddp``), another framework for a plugin,
    other stages for micro-batches of the base that are too few or of no use, and the new ``tp * pp`` for a number of
    ranks that it does not divide. Options that are left out take their defaults in ``resolve``. What contradicts itself
    within the base, or within the wishes, stays, and is refused later.
    """
    check_types(base)
    wishes = {name: value for name, value in wishes.items() if value is not None}
    check_types(wishes)
    kept = dict(base)
    name = wishes.get("framework", base.get("framework", DEFAULT_FRAMEWORK))
    chosen = framework(name)
    other_plan = "plugin" in wishes or name != base.get("framework", DEFAULT_FRAMEWORK)
    split = [option for option in _SPLIT if wishes.get(option, 1) > 1]
    if not other_plan and "plugin" in kept:
        other_plan = not chosen.plugin(kept["plugin"]).options.issuperset(split)
    if other_plan:
        kept.pop("plugin", None)
        split += [option for option in _SPLIT if option not in wishes and kept.get(option, 1) > 1]
        plugin = chosen.plugin(wishes["plugin"]) if "plugin" in wishes else chosen.plugin_with(split)
        for option in {*_SPLIT, "micro_batches"} - plugin.options:
            kept.pop(option, None)
    if "pp" in wishes and (wishes["pp"] == 1 or kept.get("micro_batches", 1) < wishes["pp"]):
        kept.pop("micro_batches", None)
    found = {**kept, **wishes}
    if "ranks" not in wishes and "ranks" in base and _divides(base) and not _divides(found):
        del found["ranks"]
    return found


def _divides(options: Mapping[str, Any]) -> bool:
    """Whether tp * pp divides the number of ranks."""
    return options["ranks"] % _block(options) == 0


def _block(options: Mapping[str, Any]) -> int:
    """tp * pp: ranks that hold one copy of the model."""
    return int(max(1, options.get("tp", 1)) * max(1, options.get("pp", 1)))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be trained: the spec, and the source of the cell that defines the model (None: a recipe does)."""

    spec: TrainSpec
    cell: str | None


def resolve(
    wishes: Mapping[str, Any],
    *,
    config: str | Path | None = None,
    cell: str | None = None,
    default_ranks: int,
    ranks_up: int = 0,
) -> Request:
    """What is to be trained by ``wishes`` (None: not given) over the spec file ``config``, over the run of ``resume``.

    ``cell`` is the source of a cell that defines the model. Without one and without a recipe, the cell beside the spec
    file is taken, else that of the run that is resumed. ``default_ranks``: the most ranks that are taken when nobody
    says how many. ``ranks_up``: ranks that are up, of which there must be enough (0: none are). Raises ``ConfigError``
    and ``SchemaError``.
    """
    asked = merged({} if config is None else read_spec_options(config), wishes)
    if not asked.get("recipe"):
        asked.pop("recipe", None)
        beside = Path(config).expanduser().parent / CELL_FILE if config is not None else None
        if cell is None and beside is not None and beside.is_file():
            cell = beside.read_text(encoding="utf-8")
    if asked.get("resume"):
        asked, cell = _resumed(asked, cell)
    spec = _completed(asked, cell, default_ranks)
    if ranks_up and spec.plan.ranks > ranks_up:
        raise ConfigError(
            f"-n {spec.plan.ranks} ({spec.plan.mesh.describe()}) but {format_ranks(range(ranks_up))} "
            f"{'are' if ranks_up > 1 else 'is'} up: run %dist_up -n {spec.plan.ranks} first, or pass "
            f"-n {ranks_up}",
            field="--nproc-per-node",
        )
    return Request(spec=spec, cell=cell)


def _resumed(asked: dict[str, Any], cell: str | None) -> tuple[dict[str, Any], str | None]:
    """Options and cell of a run that continues from the checkpoint ``asked["resume"]``.

    What is not asked comes from the spec of the run that wrote the checkpoint, clip and accumulation from the
    checkpoint; so does the cell. ``resume`` becomes that run's directory and the step. ``steps`` counts from that run's
    beginning. Raises ``ConfigError`` when there is no such run or checkpoint, or nothing is left to train.
    """
    name, step = checkpoints.split(asked["resume"])
    try:
        run = find(name or None)
    except RunDirectoryError as error:
        raise ConfigError(f"--resume {asked['resume']}: {error}", field="--resume") from error
    path = checkpoints.find(run, step)
    in_force = checkpoints.read_index(path)["state"]["trainer"]["settings"]["values"]
    done = checkpoints.step_of(path)
    before = TrainSpec.from_options(read_spec_options(run / SPEC_FILE))
    if cell is None and "recipe" not in asked and not before.recipe:
        cell = (run / CELL_FILE).read_text(encoding="utf-8")
    base = _inherited(before, in_force)
    if cell is not None:  # a cell has its own model and optimizer, so it has its own learning rate
        base.pop("recipe", None)
        base.pop("lr", None)
    found = {**merged(base, asked), "resume": f"{run}@{done}"}
    if found["steps"] <= done:
        raise ConfigError(
            f"--resume {name}@{done}: --steps {found['steps']} are done already: pass --steps more than {done}",
            field="--steps",
        )
    return found, cell


def changed(before: TrainSpec, in_force: Mapping[str, Any], wishes: Mapping[str, Any]) -> TrainSpec:
    """The spec of a branch of a run with the spec ``before`` and these settings in force. Raises ``ConfigError``."""
    return _spec(merged(_inherited(before, in_force), wishes), before.plan.ranks)


def _inherited(before: TrainSpec, in_force: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a run takes over from the run that it continues."""
    options = {key: value for key, value in before.options().items() if key != "resume" and value is not None}
    return {**options, **{name: in_force[name] for name in _IN_FORCE if name in in_force}}


def _completed(asked: dict[str, Any], cell: str | None, default_ranks: int) -> TrainSpec:
    """The spec of ``asked`` over the recipe's defaults, or for a cell.

    A cell with a dataloader has a batch size of its own, which is 0 in the spec.
    """
    if cell is None:
        asked = _over_recipe(asked)
    elif asked.get("recipe"):
        raise ConfigError("a cell defines its own model: leave --recipe out, or use the line form", field="--recipe")
    if cell is not None and "dataloader" in names_of(cell):
        asked["batch_size"] = 0
    elif asked.get("batch_size") == 0:
        raise ConfigError("--batch-size must be a whole number of at least 1, not 0", field="--batch-size")
    spec = _spec(asked, default_ranks)
    if cell is not None:
        check_cell(cell)
    return spec


def _over_recipe(asked: dict[str, Any]) -> dict[str, Any]:
    if not asked.get("recipe"):
        raise ConfigError(
            "what to train? pass --recipe NAME (or --config FILE), or define a model in a %%dist_train cell",
            field="--recipe",
        )
    chosen = recipe(asked["recipe"])
    size = asked.get("size") or chosen.default_size
    chosen.shape(size)
    return {"name": chosen.name, **chosen.defaults[size], **asked, "size": size}


def _spec(asked: dict[str, Any], default_ranks: int) -> TrainSpec:
    """The spec with the defaults of its plan: the plugin, micro-batches and the number of ranks."""
    chosen = framework(asked.get("framework", DEFAULT_FRAMEWORK))
    if "plugin" not in asked:
        asked["plugin"] = chosen.plugin_with([option for option in _SPLIT if asked.get(option, 1) > 1]).name
    if asked.get("pp", 1) > 1:
        asked.setdefault("micro_batches", asked["pp"])
    if "ranks" not in asked:
        asked["ranks"] = _fitting_ranks(asked, default_ranks)
    spec = TrainSpec.from_options(asked)
    check_capabilities(spec)
    if spec.recipe:
        check_plan(spec)
    return spec


def _fitting_ranks(asked: dict[str, Any], most: int) -> int:
    """Ranks when nobody said how many: at most ``most``, a multiple of tp * pp, and the batch can be cut into dp."""
    block = _block(asked)
    pieces = max(1, int(asked.get("accumulate", 1))) * max(1, int(asked.get("micro_batches", 1)))
    batch = int(asked.get("batch_size", TrainSpec.batch_size))
    fits = [dp for dp in range(1, most // block + 1) if batch % (dp * pieces) == 0]
    return block * max(fits, default=1)

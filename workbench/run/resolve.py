"""Resolves given options to a ``TrainSpec``: those of flags, a spec file, a resumed or branched run, and a recipe.

No rank is used here. Options are dicts with the names of ``TrainSpec.options()``. Flags, or options given in Python,
override a spec file; both override the run that is resumed or branched; all of them override a recipe's defaults.
``merged`` lays one source over another. ``_completed`` then gives the missing options their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import plan_grammar
from workbench.core.config import SPEC_FILE, TrainSpec, check_types, read_spec_options
from workbench.core.controls import BEST
from workbench.core.flags import FLAGS
from workbench.core.frameworks import DEFAULT_FRAMEWORK, PLUGIN_OPTIONS, SPLIT, check_own_steps, framework
from workbench.core.plans.requirements import check_capabilities
from workbench.core.recipe import check_options, check_plan, recipe, with_absolute_paths
from workbench.core.user_code.cell_source import OWN_STEP, check_cell, names_of
from workbench.errors import ConfigError, RunDirectoryError
from workbench.rundir import checkpoints
from workbench.rundir.directory import CELL_FILE, recall_algorithm
from workbench.rundir.state import find

#: options whose values in force are stored in a checkpoint
_KEPT_SETTINGS = ("clip", "accumulate")


def typed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert texts as the flags of the same names do; other values are kept.

    Raises ``ConfigError`` for a text that cannot be converted.
    """
    kinds = {flag.option: flag.kind or _switch for flag in FLAGS}
    converted = {}
    for name, value in changes.items():
        try:
            converted[name] = kinds[name](value) if isinstance(value, str) and name in kinds else value
        except (ValueError, KeyError) as error:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{name}={value!r} is not a valid value: {flag} does not take it", field=name) from error
    return converted


def _switch(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` overridden by ``overrides``, without those options of the base's plan that conflict with them.

    These options of the base are removed, and take their defaults in ``resolve``: options that a plugin in
    ``overrides`` does not take (tp with ``--plugin ddp``); a plugin that does not take the ``tp``, ``pp`` or ``cp`` in
    ``overrides`` (``ddp`` with ``--tp 2``); the plugin of another framework; micro-batches that are fewer than the new
    number of stages, or that one stage does not need; and a number of ranks that the new sizes do not divide.
    Contradictions within ``base`` or within ``overrides`` are kept and raise an error later. A plan in words
    (``overrides["plan"]``) replaces all options of the base's plan but the number of ranks.
    """
    is_new_plan = overrides.get("plan") is not None
    base, overrides = plan_grammar.expanded(base), plan_grammar.expanded(overrides)
    check_types(base)
    check_types(overrides)
    if is_new_plan:
        base = _without_plan(base)
    kept = dict(base)
    name = overrides.get("framework", base.get("framework", DEFAULT_FRAMEWORK))
    chosen = framework(name)
    other_plan = "plugin" in overrides or name != base.get("framework", DEFAULT_FRAMEWORK)
    split = [option for option in SPLIT if overrides.get(option, 1) > 1]
    if not other_plan and "plugin" in kept:
        other_plan = not chosen.plugin(kept["plugin"]).options.issuperset(split)
    if other_plan:
        kept.pop("plugin", None)
        split += [option for option in SPLIT if option not in overrides and kept.get(option, 1) > 1]
        plugin = chosen.plugin(overrides["plugin"]) if "plugin" in overrides else chosen.plugin_with(split)
        for option in PLUGIN_OPTIONS.keys() - plugin.options:
            kept.pop(option, None)
    if "pp" in overrides and (overrides["pp"] == 1 or kept.get("micro_batches", 1) < overrides["pp"]):
        kept.pop("micro_batches", None)
    if overrides.get("pp") == 1:
        kept.pop("schedule", None)
    for name, other in (("steps", "epochs"), ("epochs", "steps")):  # the new end replaces the old one
        if overrides.get(name) and other not in overrides and kept.get(other):
            kept[other] = 0
    options = {**kept, **overrides}
    if "ranks" not in overrides and "ranks" in base and _divides(base) and not _divides(options):
        del options["ranks"]
    return options


def _without_plan(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without those of a plan, but with the number of ranks."""
    return {name: value for name, value in options.items() if name == "ranks" or name not in plan_grammar.OPTIONS}


def _divides(options: Mapping[str, Any]) -> bool:
    """Return whether tp * pp * cp divides the number of ranks."""
    return options["ranks"] % plan_grammar.replica_size(options) == 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """A resolved request: the spec, and the source of the cell that defines the model (None: a recipe defines it).

    ``cell_folder``: where the cell lies, if it is that of a spec file or of a resumed run. ``told``: what the
    configuration files of a framework say.
    """

    spec: TrainSpec
    cell: str | None
    cell_folder: Path | None = None
    told: tuple[str, ...] = ()


def resolve(
    overrides: Mapping[str, Any],
    *,
    config: str | Path | None = None,
    cell: str | None = None,
    default_ranks: int,
) -> Request:
    """Resolve ``overrides`` (None: not given), which override the spec file ``config``, which overrides a resumed run.

    ``cell``: the source of a cell that defines the model. Without a cell and a recipe, the cell beside the spec file is
    used, or else that of the resumed run. ``default_ranks``: the largest number of ranks used when no number is given.
    Raises ``SchemaError``, and ``ConfigError`` for options that cannot work.
    """
    of_file = {} if config is None else read_spec_options(config)
    options = merged(of_file, overrides)
    files = [*plan_grammar.files(of_file), *plan_grammar.files(overrides)]
    folder: Path | None = None
    if not options.get("recipe"):
        options.pop("recipe", None)
        beside = Path(config).expanduser().parent / CELL_FILE if config is not None else None
        if cell is None and beside is not None and beside.is_file():
            cell, folder = beside.read_text(encoding="utf-8"), beside.parent
    begun = checkpoints.distributed(options.get("resume") or "")
    if begun is not None:
        if not (begun / checkpoints.DISTRIBUTED_INDEX).is_file():
            raise ConfigError(
                f"--resume {options['resume']}: {begun} has no {checkpoints.DISTRIBUTED_INDEX}, so it is no directory "
                "that torch.distributed.checkpoint.save wrote",
                field="--resume",
            )
        options = {**options, "resume": f"{checkpoints.DISTRIBUTED}{begun}"}
    elif options.get("resume"):
        own_cell = cell
        is_new_plan = any(given.get("plan") is not None for given in (of_file, overrides))
        options, cell = _resumed(options, cell, is_new_plan)
        if own_cell is None and cell is not None:
            folder = Path(checkpoints.split(options["resume"])[0])
    spec = _completed(options, cell, default_ranks)
    for file in files:
        if not spec.batch_size and "batch_size" in file.options:
            raise ConfigError(
                f"{file.name} says {file.options['batch_size'].key}, and the cell's dataloader has its own batch size: "
                'leave it out, or write "auto"',
                field="--batch-size",
            )
    return Request(spec=spec, cell=cell, cell_folder=folder, told=tuple(file.words() for file in files))


def _resumed(options: dict[str, Any], cell: str | None, is_new_plan: bool) -> tuple[dict[str, Any], str | None]:
    """Return the options and the cell of a run that continues from the checkpoint ``options["resume"]``.

    Missing options and a missing cell come from the run that wrote the checkpoint; ``clip`` and ``accumulate`` have the
    values stored in the checkpoint. ``is_new_plan``: a plan in words is among the options, and replaces that of the
    run. ``resume`` becomes that run's directory and the step. ``steps`` counts from the beginning of that run. Raises
    ``ConfigError`` when the run or the checkpoint does not exist, or no step is left to train.
    """
    name, step = checkpoints.split(options["resume"])
    try:
        run = find(name or None)
    except RunDirectoryError as error:
        raise ConfigError(f"--resume {options['resume']}: {error}", field="--resume") from error
    path = checkpoints.find(run, step)
    index = checkpoints.read_index(path)
    current, done = index["state"]["trainer"]["settings"]["values"], checkpoints.step_of(path)
    before = TrainSpec.from_options(read_spec_options(run / SPEC_FILE))
    recall_algorithm(run, before.plan.algorithm)
    if cell is None and "recipe" not in options and not before.recipe:
        cell = (run / CELL_FILE).read_text(encoding="utf-8")
    base = _inherited(before, current)
    base = _without_plan(base) if is_new_plan else base
    if cell is not None:  # the learning rate is that of the optimizer that the cell defines
        base.pop("recipe", None)
        base.pop("lr", None)
    resumed = {**merged(base, options), "resume": f"{run}@{step if step == BEST else done}"}
    for end, count in (("steps", done), ("epochs", index["state"]["trainer"].get("epochs") or 0)):
        if 0 < resumed.get(end, 0) <= count:
            raise ConfigError(
                f"--resume {name}@{done}: the checkpoint has {count} {end} and --{end} is {resumed[end]}, so no step "
                f"is left to train: pass --{end} greater than {count}",
                field=f"--{end}",
            )
    return resumed, cell


def changed(before: TrainSpec, current: Mapping[str, Any], overrides: Mapping[str, Any]) -> TrainSpec:
    """Return the spec of a branch with the changes ``overrides``. Raises ``ConfigError`` for changes that cannot work.

    ``before``: the spec of the run that is branched; ``current``: its current settings.
    """
    return _spec(merged(_inherited(before, current), overrides), before.plan.ranks)


def _inherited(before: TrainSpec, current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a run inherits from the run that it continues."""
    options = {key: value for key, value in before.options().items() if key != "resume" and value is not None}
    return {**options, **{name: current[name] for name in _KEPT_SETTINGS if name in current}}


def _completed(options: dict[str, Any], cell: str | None, default_ranks: int) -> TrainSpec:
    """Return the spec of ``options``, completed with the defaults of the recipe and the plan.

    A cell with a dataloader defines its own batch size; the spec then has the batch size 0.
    """
    if options.get("epochs") == 0 and "steps" not in options:
        raise ConfigError("--epochs 0 trains nothing: pass at least 1, or --steps N", field="--epochs")
    if options.get("epochs"):
        options = {"steps": 0, "eval_every": "1ep", **options}
    if cell is None:
        options = _over_recipe(options)
    elif options.get("recipe"):
        raise ConfigError(
            "a cell defines its own model, so --recipe cannot be given: leave it out, or use the line form",
            field="--recipe",
        )
    if cell is not None and "dataloader" in names_of(cell):
        options["batch_size"] = 0
    elif options.get("batch_size") == 0:
        raise ConfigError("--batch-size must be a whole number of at least 1, not 0", field="--batch-size")
    spec = _spec(options, default_ranks)
    if cell is not None:
        check_cell(cell)
        if OWN_STEP in names_of(cell):
            check_own_steps(spec.plan.framework, spec.plan.plugin)
    return spec


def _over_recipe(options: dict[str, Any]) -> dict[str, Any]:
    if not options.get("recipe"):
        raise ConfigError(
            "no model was given: pass --recipe NAME or --config FILE, or define a model in the cell below a magic with "
            "two percent signs (%%dist_train, %%dist_plans, %%dist_verify)",
            field="--recipe",
        )
    chosen = recipe(options["recipe"])
    size = options.get("size") or chosen.default_size
    if size or chosen.sizes:
        chosen.shape(size)
    return {"name": chosen.name, **chosen.defaults[size], **with_absolute_paths(options), "size": size}


def _spec(options: dict[str, Any], default_ranks: int) -> TrainSpec:
    """Return the spec, with the defaults of its plan: the plugin, the micro-batches and the number of ranks."""
    options = plan_grammar.completed(options)
    if "ranks" not in options:
        options["ranks"] = _fitting_ranks(options, default_ranks)
    spec = TrainSpec.from_options(options)
    check_capabilities(spec)
    if spec.recipe:
        check_plan(spec)
    else:
        check_options(spec)
    return spec


def _fitting_ranks(options: dict[str, Any], most: int) -> int:
    """Return the default number of ranks: the most replicas, on at most ``most`` ranks, that can split the batch."""
    block = plan_grammar.replica_size(options)
    parts_per_rank = max(1, int(options.get("accumulate", 1))) * max(1, int(options.get("micro_batches", 1)))
    batch = int(options.get("batch_size", TrainSpec.batch_size))
    fits = [dp for dp in range(1, most // block + 1) if batch % (dp * parts_per_rank) == 0]
    return block * max(fits, default=1)

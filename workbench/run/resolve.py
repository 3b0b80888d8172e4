"""From wishes to a spec: the one place where flags, a spec file, a resumed run and a branch become a ``TrainSpec``.

Pure decisions, made before a rank does anything. Wishes are flat options as people give them (names of
``TrainSpec``). They win over what they are laid over: a spec file (``request``), the run that is resumed (``resumed``)
or branched (``changed``), always by ``merged``. What is still open then takes its default in ``resolve``.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.core.config import SPEC_FILE, TrainSpec, check_capabilities, check_types, read_spec_options
from workbench.core.flags import FLAGS
from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework
from workbench.core.recipe import check_plan, recipe
from workbench.errors import ConfigError, RunDirectoryError, format_ranks
from workbench.rundir import checkpoints
from workbench.rundir.directory import CELL_FILE
from workbench.rundir.state import find

#: what the cell form has to define: each entry is satisfied by one of its names
REQUIRED_NAMES = (("model",), ("optimizer",), ("dataset", "dataloader"), ("loss_fn", "criterion"))
#: options that belong to one run: another that goes on from it does not inherit them
_OWN = ("name", "resume")
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
    ranks that it does not divide. Options that are left out take their defaults in ``resolve``.
    """
    check_types(base)
    wishes = {name: value for name, value in wishes.items() if value is not None}
    check_types(wishes)
    kept = dict(base)
    name = wishes.get("framework", base.get("framework", DEFAULT_FRAMEWORK))
    if name != base.get("framework", DEFAULT_FRAMEWORK):
        kept.pop("plugin", None)
    chosen = framework(name)
    if "plugin" in wishes:
        takes = chosen.plugin(wishes["plugin"]).options
    else:
        split = [option for option in _SPLIT if wishes.get(option, 1) > 1]
        if "plugin" in kept and not chosen.plugin(kept["plugin"]).options.issuperset(split):
            del kept["plugin"]
        split += [option for option in _SPLIT if option not in wishes and kept.get(option, 1) > 1]
        takes = (chosen.plugin(kept["plugin"]) if "plugin" in kept else chosen.plugin_with(split)).options
    for option in (*_SPLIT, "micro_batches"):
        if option not in takes:
            kept.pop(option, None)
    if "pp" in wishes and (wishes["pp"] == 1 or kept.get("micro_batches", 1) < wishes["pp"]):
        kept.pop("micro_batches", None)
    found = {**kept, **wishes}
    if found.get("ranks", 0) % (found.get("tp", 1) * found.get("pp", 1)) and "ranks" not in wishes:
        del found["ranks"]
    return found


def request(
    file: str | Path | None, wishes: dict[str, Any], *, cell: str | None = None
) -> tuple[dict[str, Any], str | None]:
    """Options of a run, and the source of the cell that defines its model (None: a recipe does).

    ``wishes`` win over the spec ``file``. The ``spec.toml`` of a run whose model was a cell trains with that cell,
    which stands beside it, unless ``cell`` is given. Raises ``ConfigError`` and ``SchemaError`` for a faulty file.
    """
    options = merged(read_spec_options(file), wishes) if file is not None else dict(wishes)
    if not options.get("recipe"):
        options.pop("recipe", None)
        beside = Path(file).expanduser().parent / CELL_FILE if file is not None else None
        if cell is None and beside is not None and beside.is_file():
            cell = beside.read_text(encoding="utf-8")
    return options, cell


def resumed(options: dict[str, Any], cell: str | None) -> tuple[dict[str, Any], str | None]:
    """Options and cell of a run that goes on from a checkpoint; unchanged without ``resume``.

    What the options leave open comes from the spec of the run that wrote the checkpoint, clip and accumulation from the
    checkpoint; so does the cell. ``resume`` becomes that run's directory and the step. ``steps`` counts from that run's
    beginning. Raises ``ConfigError`` when there is no such run or checkpoint, or nothing is left to train.
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
    wishes = {key: value for key, value in options.items() if value is not None and key != "resume"}
    if cell is None and "recipe" not in wishes and not before.recipe:
        cell = (run / CELL_FILE).read_text(encoding="utf-8")
    base = {**_inherited(before, in_force), "name": before.name}
    if cell is not None:  # a cell has its own model and optimizer, so it has its own learning rate
        base.pop("recipe", None)
        base.pop("lr", None)
    found = {**merged(base, wishes), "resume": f"{run}@{done}"}
    if found["steps"] <= done:
        raise ConfigError(
            f"--resume {name}@{done}: --steps {found['steps']} are done already: pass --steps more than {done}",
            field="--steps",
        )
    return found, cell


def changed(before: TrainSpec, in_force: Mapping[str, Any], wishes: Mapping[str, Any]) -> TrainSpec:
    """The spec of a branch of a run with the spec ``before`` and these settings in force. Raises ``ConfigError``."""
    found = merged({**_inherited(before, in_force), "name": before.name}, wishes)
    return _spec(found, ranks_up=before.plan.ranks, default_ranks=before.plan.ranks)


def _inherited(before: TrainSpec, in_force: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a run which goes on from another takes over."""
    options = {key: value for key, value in before.options().items() if key not in _OWN and value is not None}
    return {**options, **{name: in_force[name] for name in _IN_FORCE if name in in_force}}


def resolve(options: dict[str, Any], *, ranks_up: int, default_ranks: int, cell: str | None = None) -> TrainSpec:
    """The spec of a run from options (those absent or None take their defaults).

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
    return _spec(asked, ranks_up=ranks_up, default_ranks=default_ranks)


def _spec(asked: dict[str, Any], *, ranks_up: int, default_ranks: int) -> TrainSpec:
    """The spec with the defaults of its plan: the plugin, micro-batches and the number of ranks."""
    chosen = framework(asked.get("framework", DEFAULT_FRAMEWORK))
    if "plugin" not in asked:
        asked["plugin"] = chosen.plugin_with([option for option in _SPLIT if asked.get(option, 1) > 1]).name
    if asked.get("pp", 1) > 1:
        asked.setdefault("micro_batches", asked["pp"])
    if "ranks" not in asked:
        asked["ranks"] = _fitting(asked, ranks_up or default_ranks)
    spec = TrainSpec.from_options(asked)
    check_capabilities(spec)
    if spec.recipe:
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

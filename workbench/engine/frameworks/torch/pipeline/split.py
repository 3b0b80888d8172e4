"""Splits a model into pipeline stages: at which modules stages begin, and which modules each rank keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.frameworks.torch.pipeline.items import (
    Blanks,
    Running,
    ShapeOnly,
    StagedList,
    StagedSequential,
    StageItem,
    recomputed_here,
)
from workbench.engine.frameworks.torch.schedules import SCHEDULES
from workbench.errors import ConfigError

#: a list is the model's blocks if it has this share of the parameters of all lists of equal modules
_MOST = 0.75
#: settings of transformers models whose value is collected over all blocks, of which a stage has some
_COLLECTED = ("output_router_logits", "output_hidden_states", "output_attentions")
#: modules that stand before the blocks and are called after them
_AFTER = ("final_layer_norm", "project_out")


def stage_count(spec: TrainSpec) -> int:
    """Stages of the whole pipeline."""
    return spec.plan.pp * (SCHEDULES[spec.plan.schedule].stages if spec.plan.pp > 1 else 1)


def check_split(model: torch.nn.Module, spec: TrainSpec, named: Sequence[str]) -> None:
    """Refuse, with ``ConfigError``, a model that cannot be split into the stages of the plan. ``named``: the modules
    with which the cell's ``pipeline_split`` lets stages begin, all but the first; empty: it has none."""
    if hasattr(model, "_orig_mod"):
        raise ConfigError(
            f"--pp {spec.plan.pp} cannot split a model that torch.compile wraps: compile its blocks instead (for block "
            "in model.model.layers: block.compile()), or use --plugin ddp",
            field="--pp",
        )
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if first.setdefault(id(module), name) != name and _has_parameters(module):
            raise ConfigError(
                f"{first[id(module)]} and {name} are the same module, which a pipeline cannot put on two stages: make "
                "two modules that share their weights, or use --plugin ddp",
                field="--pp",
            )
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{name} is a {type(module).__name__}: in a pipeline it would normalise each micro-batch by itself, so "
                "training would differ from one process. Use --plugin ddp with --sync-batchnorm",
                field="--pp",
            )
    config = getattr(model, "config", None)
    for setting in _COLLECTED:
        if getattr(config, setting, None) is True:
            raise ConfigError(
                f"{setting}=True in the model's configuration collects values of all blocks, and a pipeline stage has "
                "some of them: leave it out, or use --plugin ddp",
                field="--pp",
            )
    if SCHEDULES[spec.plan.schedule].splits_backward and any(
        getattr(module, "gradient_checkpointing", False) is True for module in model.modules()
    ):
        raise ConfigError(
            f"--schedule {spec.plan.schedule} runs the backward pass in two parts, of which gradient checkpointing "
            "would compute the blocks twice: turn it off, or pass --schedule interleaved",
            field="--schedule",
        )
    cuts_of(model, spec, named)


def cuts_of(model: torch.nn.Module, spec: TrainSpec, named: Sequence[str]) -> list[str]:
    """Names of the modules with which the second, third, ... stage begins. ``ConfigError`` if it cannot be told."""
    count = stage_count(spec)
    if count == 1:
        return []
    if named:
        return _named_cuts(model, spec, named, count)
    blocks = _blocks_of(model, spec)
    if len(blocks) < count:
        raise ConfigError(
            f"{_pipeline(spec)} is more than the {len(blocks)} blocks of the model ({blocks[0]} to {blocks[-1]}): use "
            f"fewer stages{' (--schedule 1f1b has one for each --pp)' if count > spec.plan.pp else ''}",
            field="--pp",
        )
    return [blocks[stage * len(blocks) // count] for stage in range(1, count)]


def _pipeline(spec: TrainSpec) -> str:
    each = SCHEDULES[spec.plan.schedule].stages
    return f"--pp {spec.plan.pp}" + (f" with {each} stages each (--schedule {spec.plan.schedule})" if each > 1 else "")


def _named_cuts(model: torch.nn.Module, spec: TrainSpec, named: Sequence[str], count: int) -> list[str]:
    known = dict(model.named_modules())
    if isinstance(named, str) or not all(isinstance(name, str) for name in named):
        raise ConfigError(
            f'pipeline_split is {named!r}: it is a list of names of modules, such as ["layers.4", "layers.8"]',
            field="pipeline_split",
        )
    unknown = [name for name in named if name not in known or not name]
    if unknown:
        raise ConfigError(
            f"pipeline_split names {', '.join(map(repr, unknown))}, which the model does not have: its modules are "
            f"{', '.join([name for name in known if name][:12])}, ...",
            field="pipeline_split",
        )
    if len(named) != count - 1:
        raise ConfigError(
            f"pipeline_split names {len(named)} modules, and {_pipeline(spec)} makes {count} stages: name the "
            f"{count - 1} modules with which all stages but the first begin",
            field="pipeline_split",
        )
    nested = [name for name in named if any(name.startswith(f"{other}.") for other in named)]
    uncalled = [name for name in named if isinstance(known[name], torch.nn.ModuleList | torch.nn.ModuleDict)]
    if nested or uncalled:
        raise ConfigError(
            f"a pipeline stage cannot begin with {(nested or uncalled)[0]}, which "
            f"{'is inside another stage' if nested else 'is a list and is not called'}: name one of the modules that "
            "are called one after the other",
            field="pipeline_split",
        )
    order = [name for name in known if name in named]
    if order != list(named):
        raise ConfigError(
            f"pipeline_split is not in the order of the model, which is {', '.join(order)}", field="pipeline_split"
        )
    return list(named)


def _blocks_of(model: torch.nn.Module, spec: TrainSpec) -> list[str]:
    """Names of the modules that a model calls one after the other, each with what the one before returned."""
    if type(model) is torch.nn.Sequential:
        return [name for name, child in model.named_children() if _has_parameters(child)]
    lists = {name: module for name, module in model.named_modules() if name and _is_list_of_blocks(module)}
    outermost = {
        name: module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists if other != name)
    }
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in outermost.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if not largest or sizes[largest] < _MOST * sum(sizes.values()):
        found = f"several lists of blocks ({', '.join(outermost)})" if outermost else "no list of blocks"
        raise ConfigError(
            f"--pp {spec.plan.pp} cannot split a {type(model).__name__}: it has {found}. Name the modules with which "
            'the later stages begin, pipeline_split = ["layers.4"], each of which takes what the one before returned, '
            "or use --plugin ddp",
            field="--pp",
        )
    return [f"{largest}.{name}" for name, _ in outermost[largest].named_children()]


def _is_list_of_blocks(module: torch.nn.Module) -> bool:
    children = list(module.children())
    is_list = isinstance(module, torch.nn.ModuleList) or type(module) is torch.nn.Sequential
    return is_list and len(children) > 1 and len({type(c) for c in children}) == 1 and _has_parameters(children[0])


def _has_parameters(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@dataclass(frozen=True, slots=True)
class _Unit:
    """A module that is on one stage as a whole: child ``name`` of ``parent``."""

    path: str
    parent: torch.nn.Module
    name: str
    module: torch.nn.Module
    stage: int
    begins: bool


@dataclass(kw_only=True)
class Stages:
    """A model that was split. ``held``: stage -> its parameters, of the stages of this rank. ``shared``: parameters
    that several ranks hold, and which of the pipeline do, the first one first, in the same order on all ranks.
    ``blanks``: what stands for the numbers of other stages. ``trained``: stages of the pipeline with parameters that
    require a gradient. ``direct``: parameters of the first stage that belong to a module which runs on all.
    """

    running: Running
    blanks: Blanks
    held: dict[int, list[torch.nn.Parameter]] = field(default_factory=dict)
    shared: list[tuple[torch.nn.Parameter, list[int]]] = field(default_factory=list)
    trained: set[int] = field(default_factory=set)
    direct: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = field(default_factory=list)

    def enter(self, stage: int, received: torch.Tensor | None) -> None:
        """Let the model be that of ``stage``, which has ``received`` this."""
        self.running.stage, self.running.received, self.running.has_begun = stage, received, False
        for parent, name, parameter in self.direct:  # an attribute hides the parameter, which stays registered
            if stage:
                parent.__dict__[name] = self.blanks.like(parameter)
            else:
                parent.__dict__.pop(name, None)

    def replace(self, parameters: Mapping[int, torch.nn.Parameter]) -> None:
        """Hold other parameters, by the ids of those before."""
        self.held = {stage: [parameters.get(id(p), p) for p in held] for stage, held in self.held.items()}
        self.shared = [(parameters.get(id(p), p), ranks) for p, ranks in self.shared]
        self.direct = [(parent, name, parameters.get(id(p), p)) for parent, name, p in self.direct]

    def leave(self) -> None:
        """Undo ``enter``."""
        self.enter(0, None)


def split(
    model: torch.nn.Module,
    cuts: Sequence[str],
    rank_of_stage: Mapping[int, int],
    here: int,
    device: torch.device,
) -> Stages:
    """Split ``model`` in place. This rank of the pipeline, number ``here``, keeps the modules of its stages and those
    without parameters; the others are left out. ``cuts``: what ``cuts_of`` found. ``device``: where it will compute."""
    units = list(_units(model, cuts))
    direct = list(_direct_parameters(model, units))
    stages_of: dict[int, dict[int, None]] = {}
    parameters: dict[int, torch.nn.Parameter] = {}
    for stage, parameter in [
        *((0, parameter) for _, _, parameter in direct),
        *((unit.stage, parameter) for unit in units for parameter in unit.module.parameters()),
    ]:
        parameters[id(parameter)] = parameter
        stages_of.setdefault(id(parameter), {})[stage] = None
    found = Stages(running=Running(count=len(cuts) + 1), blanks=Blanks(device))
    mine = [stage for stage in rank_of_stage if rank_of_stage[stage] == here]
    for stage in mine:
        found.held[stage] = [parameters[key] for key, stages in stages_of.items() if stage in stages]
    for key, stages in stages_of.items():
        found.trained |= set(stages) if parameters[key].requires_grad else set()
        ranks = list(dict.fromkeys(rank_of_stage[stage] for stage in sorted(stages)))
        if len(ranks) > 1:
            found.shared.append((parameters[key], ranks))
    if not cuts:
        return found
    for unit, shape_only in [(unit, _without_weights(unit, found.blanks)) for unit in units]:
        _put(unit, shape_only, found.running, is_held=unit.stage in mine)
    if 0 in mine:
        found.direct = direct
    else:
        for parent, name, parameter in direct:
            del parent._parameters[name]
            parent.__dict__[name] = found.blanks.like(parameter)
    _recompute_real_modules(model)
    return found


def modules_of_stages(model: torch.nn.Module, cuts: Sequence[str]) -> list[list[str]] | None:
    """Names of the modules that each stage will hold, in order; None where the model has parameters beside them."""
    units = list(_units(model, cuts))
    if next(_direct_parameters(model, units), None) is not None:
        return None
    return [[unit.path for unit in units if unit.stage == stage] for stage in range(len(cuts) + 1)]


def _units(model: torch.nn.Module, cuts: Sequence[str]) -> Iterator[_Unit]:
    above = {name[:end] for name in cuts for end, letter in enumerate(name) if letter == "."}
    stage = 0

    def walk(prefix: str, parent: torch.nn.Module) -> Iterator[_Unit]:
        nonlocal stage
        for name, child in parent.named_children():
            path = f"{prefix}{name}"
            if path in above or (isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict) and path not in cuts):
                yield from walk(f"{path}.", child)
            elif _has_parameters(child) or path in cuts:
                begins = path in cuts
                stage += begins
                is_late = name in _AFTER and not begins
                yield _Unit(path, parent, name, child, len(cuts) if is_late else stage, begins)

    yield from walk("", model)


def _direct_parameters(
    model: torch.nn.Module, units: Sequence[_Unit]
) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    """Parameters that belong to no unit, as a model has them beside its modules: on the first stage."""
    inside = {id(module) for unit in units for module in unit.module.modules()}
    for module in model.modules():
        if id(module) not in inside:
            for name, parameter in module.named_parameters(recurse=False):
                yield module, name, parameter


def _without_weights(unit: _Unit, blanks: Blanks) -> ShapeOnly:
    """A copy of the module on the device "meta", where tensors have no numbers."""
    memo: dict[int, Any] = {}
    for parameter in unit.module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
    for buffer in unit.module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        return ShapeOnly(users_name(unit.path), copy.deepcopy(unit.module, memo), blanks)
    except (TypeError, RuntimeError) as error:
        raise ConfigError(
            f"{users_name(unit.path)} cannot be copied without its weights ({error}), as a pipeline needs of every "
            "module: use --plugin ddp",
            field="--pp",
        ) from error


def _put(
    unit: _Unit,
    shape_only: ShapeOnly,
    running: Running,
    *,
    is_held: bool,
) -> None:
    """Put a ``StageItem`` in the place of a module; registered it stays only where this rank holds it."""
    real = unit.module if is_held else None
    item = StageItem(users_name(unit.path), real, shape_only, running, stage=unit.stage, begins=unit.begins)
    parent: Any = unit.parent
    if isinstance(unit.parent, torch.nn.ModuleList | torch.nn.Sequential):
        if "items" not in parent.__dict__:
            _make_staged(parent)
        names: list[str] = parent.__dict__["names"]
        parent.items[names.index(unit.name)] = item
    else:
        parent.__dict__[unit.name] = item
    if not is_held:
        del parent._modules[unit.name]


def _make_staged(parent: Any) -> None:
    """Let a list give its modules as the running stage sees them. Its class is replaced, as Python asks for
    ``__iter__`` and ``__getitem__`` there."""
    kinds = {torch.nn.ModuleList: StagedList, torch.nn.Sequential: StagedSequential}
    if type(parent) not in kinds:
        raise ConfigError(
            f"a {type(parent).__name__} holds modules of several pipeline stages, and has methods of its own beside "
            "those of ModuleList and Sequential: use one of these, or --plugin ddp",
            field="--pp",
        )
    parent.__dict__["names"] = list(parent._modules)
    parent.__dict__["items"] = list(parent._modules.values())
    parent.__class__ = kinds[type(parent)]


def _recompute_real_modules(model: torch.nn.Module) -> None:
    """Let transformers checkpoint the blocks of the running stage only, and recompute in the same backward pass."""
    for module in model.modules():
        recompute = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(recompute, partial):
            direct = partial(recompute.func, *recompute.args, **{**recompute.keywords, "use_reentrant": False})
            module._gradient_checkpointing_func = partial(recomputed_here, direct)  # type: ignore[assignment]

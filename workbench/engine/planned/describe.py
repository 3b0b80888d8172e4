"""Describes the user's model to the planner: on one rank, as a training builds it, without training it."""

from __future__ import annotations

import gc
import json
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.frameworks import framework
from workbench.engine import notebook_group
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in
from workbench.engine.entry import build_workload, joined_of, load_strategy
from workbench.engine.frameworks.torch.fsdp.sharding import blocks_of
from workbench.engine.frameworks.torch_common.torch_settings import torch_defaults
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.engine.planned.activity import measure
from workbench.engine.planned.optimizer_state import states_of
from workbench.engine.planned.shapes import shapes_only
from workbench.errors import ConfigError
from workbench.planner.model import ModelDescription, Parameter, Splits

#: what the notebook asks, and what a rank answers: files of the directory
ASKED, ANSWER = "candidates.json", "description.json"


def describe(directory: str) -> None:
    """On rank 0, write the description of the model of a run directory into its file ``ANSWER``; its file ``ASKED``
    has the options of the candidates. Other ranks only leave the group of cells. What the notebook can say better is
    written as ``{"error": text}``; other errors are raised."""
    notebook_group.leave()
    if int(os.environ["RANK"]) != 0:
        return
    path = Path(directory)
    spec = TrainSpec.from_options(read_spec_options(path / SPEC_FILE))
    candidates = [TrainSpec.from_options(options) for options in json.loads((path / ASKED).read_text("utf-8"))]
    try:
        with torch_defaults(), joined_of(spec)(0, 1, path / "alone", seed=spec.seed), shapes_only():
            answer: dict[str, Any] = describe_workload(build_workload(path, spec), spec, candidates).to_json()
    except ConfigError as error:
        answer = {"error": str(error)}
    finally:
        gc.collect()
    (path / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


def describe_workload(workload: Workload, spec: TrainSpec, candidates: Sequence[TrainSpec]) -> ModelDescription:
    """Describe a workload that was just built, and which of the ``candidates`` refuse it."""
    module = trained(workload)
    states, state_unknown = states_of(workload.optimizer)
    batch, activity, activity_unknown = _activity(workload, spec)
    refused = {number: reason for number, each in enumerate(candidates) if (reason := _refusal(each, workload))}
    accepted = [each for number, each in enumerate(candidates) if number not in refused]
    return ModelDescription(
        title=type(workload.model).__name__,
        parameters=parameters_of(workload),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in module.buffers()),
        states=states,
        state_unknown=state_unknown,
        batch_size=spec.batch_size or batch,
        activity=activity,
        activity_unknown=activity_unknown,
        refused=refused,
        splits=_splits(workload, accepted),
        tied=tied_in(module),
        blocks=_blocks(module),
    )


def _blocks(module: torch.nn.Module) -> tuple[str, ...]:
    """As ``ModelDescription.blocks``."""
    found = {id(block) for block in blocks_of(module)}
    return tuple(users_name(name) for name, each in module.named_modules() if id(each) in found)


def parameters_of(workload: Workload) -> tuple[Parameter, ...]:
    """The parameters of a workload's model and of what stands beside it, tied ones once."""
    groups = {
        id(parameter): number
        for number, group in enumerate(workload.optimizer.param_groups)
        for parameter in group["params"]
    }
    return tuple(
        Parameter(
            name=users_name(name),
            module=users_name(name).rpartition(".")[0],
            shape=tuple(parameter.shape),
            itemsize=parameter.element_size(),
            trained=parameter.requires_grad,
            group=groups.get(id(parameter), -1),
        )
        for name, parameter in trained(workload).named_parameters()
    )


def tied_in(module: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """As ``ModelDescription.tied``."""
    names = {id(parameter): users_name(name) for name, parameter in module.named_parameters()}
    found: dict[str, tuple[str, ...]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        own, other = names[id(parameter)], users_name(name)
        if other != own:
            found[own] = (*found.get(own, ()), other.rpartition(".")[0])
    return found


def _activity(workload: Workload, spec: TrainSpec) -> tuple[int, dict[str, Any], str]:
    """Samples of the first batch, ``ModelDescription.activity``, and why it is empty."""
    batch = next(iter(workload.data.batches(0, 1)))
    samples = samples_in(batch)
    if workload.train_step is not None:
        return samples, {}, "the cell has a train_step of its own, whose passes are not known"
    modes = ("autocast",) if spec.precision == "fp32" else ("autocast", "cast")
    found = {}
    for mode in modes:
        try:
            found[mode] = measure(workload, batch, mode, spec.precision)
        except torch.OutOfMemoryError as error:
            return samples, {}, f"a forward pass of a few samples does not fit: {error}"
        except Exception as error:
            if mode == "autocast":
                raise
            return samples, found, f"in {spec.precision} the model itself fails: {type(error).__name__}: {error}"
    return samples, found, ""


def _refusal(spec: TrainSpec, workload: Workload) -> str:
    """Why a plan cannot train this workload, in the framework's words; "" when it can."""
    try:
        load_strategy(spec, own_steps=workload.train_step is not None).check(spec, workload)
    except ConfigError as error:
        return str(error)
    return ""


def _splits(workload: Workload, candidates: Sequence[TrainSpec]) -> dict[str, Splits]:
    """How the plugins split the model, as each of them says for the stages that are asked."""
    asked: dict[tuple[str, str], list[TrainSpec]] = {}
    for spec in candidates:
        if spec.plan.replica_size > 1:
            asked.setdefault((spec.plan.framework, spec.plan.plugin), []).append(spec)
    return {f"{name} {plugin}": _splits_of(name, plugin, workload, specs) for (name, plugin), specs in asked.items()}


def _splits_of(name: str, plugin: str, workload: Workload, specs: Sequence[TrainSpec]) -> Splits:
    function = framework(name).plugin(plugin).splits
    if not function:
        return Splits(unknown=f"{name} {plugin} does not say how it splits a model")
    tps, pps = ({spec.plan.tp for spec in specs}, {spec.plan.pp for spec in specs})
    found: Splits = pkgutil.resolve_name(function)(workload, tps - {1}, pps - {1})
    return found

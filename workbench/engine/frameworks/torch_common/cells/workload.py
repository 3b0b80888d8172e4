"""Builds a workload from a cell of the notebook: runs its code and takes the names that it defines."""

from __future__ import annotations

import inspect
import linecache
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.core.frameworks import framework
from workbench.core.knobs import Knobs
from workbench.core.ordered_samples import SettableSamples
from workbench.core.rules.own_alerts import OwnAlerts
from workbench.core.user_code.cell_source import OWN_STEP, logged_names
from workbench.engine.base.group_rates import scaled
from workbench.engine.base.user_log import UserLog
from workbench.engine.base.workload import BatchSource, Workload
from workbench.engine.data.dataset_source import dataset_source
from workbench.engine.data.loader_source import LoaderSource
from workbench.engine.data.own_generators import OwnGenerator, own_generators
from workbench.engine.data.replica_samplers import is_distributed
from workbench.engine.frameworks.torch_common.cells.declared import hooks_of, schedule_of
from workbench.engine.frameworks.torch_common.cells.pretrained import make_model
from workbench.engine.frameworks.torch_common.cells.validation import evaluation_of
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.optimizer_checks import check_optimizer
from workbench.engine.frameworks.torch_common.steps.declared import own_step
from workbench.engine.frameworks.torch_common.steps.optimizers import joined_optimizer, joined_scheduler
from workbench.engine.share.share import share
from workbench.engine.state.cell_names import CellNames, defined_on_rank, restore
from workbench.engine.state.cell_state import CellState
from workbench.errors import ConfigError
from workbench.rundir.checkpoints import distributed


def workload_from_cell(file: Path, spec: TrainSpec) -> Workload:
    """Run the cell in ``file`` and build its workload.

    The cell runs in a copy of the rank's namespace, so it sees names that were pushed or defined by ``%%dist`` cells.
    It also sees ``spec``, ``rank``, ``world_size`` and ``device`` of the run, ``knob``, a method of the workload's own
    ``Knobs``, and, unless an earlier cell defined these names, ``alert``, one of its ``OwnAlerts``, ``log``, its
    ``UserLog``, and ``share``. Errors of the cell are raised
    unchanged, with its lines in the traceback. Raises ``ConfigError`` when the cell contradicts the options.
    """
    source = file.read_text(encoding="utf-8")
    knobs, alerts, user_log = Knobs(), OwnAlerts(), UserLog()
    on_rank = defined_on_rank()
    given: dict[str, Any] = {"world_size": spec.plan.ranks, "spec": spec, "knob": knobs.knob, "__name__": "__main__"}
    offered = {"alert": alerts.alert, "log": user_log, "share": share}
    given |= {name: value for name, value in offered.items() if name not in on_rank}
    before = {"rank": int(os.environ.get("RANK", "0")), "device": rank_device(), **on_rank, **given}
    is_kept = restore(file.parent, before)
    names = None if is_kept else CellNames.of(source, on_rank, given)
    namespace = dict(before)
    linecache.cache[str(file)] = (len(source), None, source.splitlines(keepends=True), str(file))
    exec(compile(source, str(file), "exec"), namespace)
    user_log.suspend()
    logged = logged_names(source)
    if logged is not None:
        alerts.check_known(logged)
    # a name that an earlier cell defined on the rank does not belong to this cell
    defined = {name: value for name, value in namespace.items() if name not in before or before[name] is not value}
    after_split = make_model(defined, spec)
    namespace |= {name: defined[name] for name in ("model", "optimizer", "lr_scheduler") if name in defined}
    adopts = framework(spec.plan.framework).adopts
    workload = _workload(pkgutil.resolve_name(adopts)(defined, spec) if adopts else defined, spec, knobs)
    workload.after_split = after_split
    workload.tokenizer = namespace.get("tokenizer")
    workload.cell_state = CellState(namespace, defined, elsewhere=_drawn_by(workload, defined))
    workload.cell_names = names
    workload.names = namespace
    workload.alerts = alerts
    workload.on_alert = _on_alert(defined)
    workload.user_log = user_log
    return workload


def _workload(names: dict[str, Any], spec: TrainSpec, knobs: Knobs) -> Workload:
    model, train_step = names["model"], names.get(OWN_STEP)
    if not isinstance(model, torch.nn.Module):
        several = isinstance(model, Mapping | list | tuple)
        right = 'model = torch.nn.ModuleDict({"g": ..., "d": ...})' if several else "a torch.nn.Module, as in Net(...)"
        raise ConfigError(f"model is {_in_words(model)}: define {right}", field="model")
    if train_step is None:
        optimizer, scheduler = names["optimizer"], names.get("lr_scheduler")
        check_optimizer(optimizer)
    else:
        given = names["optimizer"] if "optimizer" in names else names["optimizers"]
        train_step = own_step(names, given)
        optimizer, scheduler = joined_optimizer(given), joined_scheduler(names.get("lr_scheduler"))
    every, metric = schedule_of(names, getattr(scheduler, "parts", [scheduler]), spec)
    if spec.lr is not None and scheduler is None:
        rates = scaled([float(group["lr"]) for group in optimizer.param_groups], spec.lr)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    elif spec.lr is not None and (not spec.resume or distributed(spec.resume)):
        # in a resumed run --lr overrides the schedule
        raise ConfigError("--lr and an lr_scheduler in the cell contradict each other: leave one out", field="--lr")
    loader = names.get("dataloader")
    if loader is not None:
        if spec.shuffle:
            raise ConfigError("--shuffle is for a dataset; a dataloader has its own order", field="--shuffle")
        parts = _equal_parts(loader, spec)
        _check_loader(loader, spec, parts)
        data: BatchSource = LoaderSource(loader, seed=spec.seed, equal_parts=parts)
    elif spec.batch_size == 0:
        raise ConfigError(
            "the cell's dataloader is None, but the batch size comes from it: define a dataloader, or remove the "
            "name dataloader from the cell",
            field="dataloader",
        )
    else:
        data = dataset_source(names["dataset"], spec)
        if isinstance(data.dataset, SettableSamples):
            data.dataset.declare(knobs.knob)
    loss_fn = names.get("loss_fn")
    criterion = names.get("criterion") if loss_fn is None else None
    _check_loss("loss_fn(model, batch)", loss_fn)
    _check_loss("criterion(outputs, target)", criterion)
    evaluation, generators = evaluation_of(names, spec), _generators(names)
    if evaluation is not None:
        evaluation.generators = generators
    return Workload(
        model=model,
        optimizer=optimizer,
        data=data,
        loss_fn=loss_fn,
        criterion=_on_pairs(criterion) if criterion is not None else None,
        train_step=train_step,
        lr_scheduler=scheduler,
        schedule_every=every,
        schedule_metric=metric,
        hooks=hooks_of(names),
        tokens_per_sample=None,
        knobs=knobs,
        generators=generators,
        beside=_beside(names, model, optimizer),
        pipeline_split=names.get("pipeline_split") or (),
        evaluate=evaluation,
        sample=evaluation.texts if evaluation is not None and evaluation.writes else None,
    )


def _generators(names: dict[str, Any]) -> dict[str, OwnGenerator]:
    """Random generators of the cell's own that draw for the model and the loss; and those that an optimizer, or else a
    hook, draws from, which stay alike on all ranks."""
    roots = [names.get(name) for name in ("loss_fn", "criterion", OWN_STEP, "model")]
    optimizers = [names.get(name) for name in ("optimizer", "optimizers")]
    found = own_generators(*roots, without=optimizers, shared=[names.get("dataset"), names.get("dataloader")])
    hooks = own_generators(*(names.get(name) for name in ("on_step", "on_epoch")), without=[*roots, *optimizers])
    alike = {id(each.generator): each for each in (*own_generators(*optimizers), *hooks)}
    for each in alike.values():
        each.is_alike = True
    return {f"own{number}": generator for number, generator in enumerate((*found, *alike.values()))}


def _drawn_by(workload: Workload, names: dict[str, Any]) -> list[Any]:
    """Random generators that go on, or begin anew, with the run that resumes: of model, loss and data."""
    data = own_generators(*(names.get(name) for name in ("dataset", "dataloader", "eval_dataset", "eval_dataloader")))
    held = [each for each in workload.generators.values() if isinstance(each, OwnGenerator)]
    return [each.generator for each in (*held, *data)]


def _in_words(value: Any) -> str:
    return f"the class {value.__name__}, not an instance" if isinstance(value, type) else f"a {type(value).__name__}"


def _check_loss(what: str, found: Any) -> None:
    is_class = isinstance(found, type) and issubclass(found, torch.nn.Module)
    if found is not None and (is_class or not callable(found)):
        name = what.partition("(")[0]
        raise ConfigError(f"{name} is {_in_words(found)}: it must be a function {what}", field=name)
    is_torchs = isinstance(found, torch.nn.modules.loss._Loss) or inspect.getmodule(found) is torch.nn.functional
    if is_torchs and what.startswith("loss_fn"):
        name = getattr(found, "__name__", type(found).__name__)
        raise ConfigError(
            f"loss_fn is torch's {name}, which takes outputs and targets, but loss_fn is called with the model and the "
            "batch: name it criterion",
            field="loss_fn",
        )


def _on_alert(names: dict[str, Any]) -> Any:
    found = names.get("on_alert")
    if found is not None and not callable(found):
        raise ConfigError("on_alert must be a function of one argument, the alert as a dict", field="on_alert")
    return found


def _beside(names: dict[str, Any], model: Any, optimizer: Any) -> dict[str, Any]:
    """What the optimizer updates and the model does not hold: modules and parameters by the cell's names for them.

    A parameter without a name of its own, such as an element of a list, is named after its place in the optimizer.
    """
    missing = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        missing.pop(id(parameter), None)
    found: dict[str, Any] = {}
    for name, value in names.items() if missing else ():
        own = list(value.parameters()) if isinstance(value, torch.nn.Module) else [value]
        if any(id(parameter) in missing for parameter in own):
            found[name] = value
            for parameter in own:
                missing.pop(id(parameter), None)
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if id(parameter) in missing:
                found[f"group{number}_parameter{index}"] = parameter
    return found


def _on_pairs(criterion: Any) -> Any:
    """Wrap ``criterion`` so that it takes (outputs, batch): a batch that is an (input, target) pair passes its target,
    as torch's loss functions expect; any other batch is passed whole."""

    def adapted(outputs: Any, batch: Any) -> Any:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        return criterion(outputs, batch[1] if pair else batch)

    return adapted


def _equal_parts(loader: Any, spec: TrainSpec) -> int:
    """Equal parts that the plan cuts a batch of the loader into: a pipeline's micro-batches; otherwise any sizes do."""
    if spec.plan.pp == 1:
        return 1
    shares = 1 if is_distributed(getattr(loader, "sampler", None)) else spec.plan.mesh.dp
    return shares * spec.accumulate * spec.plan.micro_batches


def _check_loader(loader: Any, spec: TrainSpec, parts: int) -> None:
    """Raise ``ConfigError`` when the loader's batch size cannot be divided as a pipeline needs it.

    A loader without a ``batch_size`` (a batch sampler, any iterable) is checked at each batch instead.
    """
    size = getattr(loader, "batch_size", None)
    if isinstance(size, int) and size % parts:
        raise ConfigError(
            f"the dataloader's batches of {size} samples cannot be split into the {parts} equal parts (dp "
            f"{spec.plan.mesh.dp} x accumulate {spec.accumulate} x micro-batches {spec.plan.micro_batches}) that "
            f"pipeline parallelism needs: give the dataloader batch_size={max(1, round(size / parts)) * parts} "
            "(--batch-size applies to a dataset only)",
            field="dataloader",
        )

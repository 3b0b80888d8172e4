"""Batches on their way into a torch model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.core.frameworks import Feature, check_feature
from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.containers import mapped
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch_common.weight_changes import check_max_norm
from workbench.engine.pretrained.lora import has_adapters
from workbench.errors import ConfigError


def call_model(model: Callable[..., Any], batch: Batch) -> Any:
    """Outputs of a model that is trained with a ``criterion``.

    A mapping is passed by name; of a tuple or list the last entry is the target, which the model does not see.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch[:-1]) if len(batch) > 1 else model(*batch)
    return model(batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The contents of ``batch`` with its tensors on ``device``; containers keep their types, and NumPy arrays stay."""

    def moved(leaf: Any) -> Any:
        return leaf.to(device, non_blocking=True) if isinstance(leaf, torch.Tensor) else leaf

    return mapped(moved, contents(batch))


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def outputs_seen(model: torch.nn.Module) -> Iterator[list[Any]]:
    """A list of what each call of ``model`` returns while this is entered."""
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda _module, _args, outputs: seen.append(outputs))
    try:
        yield seen
    finally:
        handle.remove()


def first_output(seen: list[Any]) -> Any:
    """The output for metrics; ``ConfigError`` when the loss was computed without calling the model."""
    if not seen:
        raise ConfigError(
            "metrics take the model's outputs, and loss_fn does not call model(...): define evaluate(model, loader) "
            "instead of metrics",
            field="metrics",
        )
    return seen[0]


def check_trainable(spec: TrainSpec, workload: Workload) -> None:
    """Refuse, with ``ConfigError``, a workload that no plan trains: without a loss, a parameter or an optimizer."""
    if (workload.loss_fn is None) == (workload.criterion is None):
        raise ConfigError("define one of loss_fn(model, batch) and criterion(outputs, batch)", field="loss_fn")
    if spec.plan.pp > 1 and workload.criterion is None:
        raise ConfigError(
            f"--pp {spec.plan.pp}: under pipeline parallelism no rank has the whole model, so loss_fn(model, batch) "
            "cannot be called: define criterion(outputs, batch), for a transformers model "
            "criterion = lambda outputs, batch: outputs.loss",
            field="loss_fn",
        )
    trainable = [p for p in workload.model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("no parameter of the model requires a gradient: nothing to train", field="model")
    if spec.precision == "fp16" and any(p.dtype == torch.float16 for p in trainable):
        raise ConfigError(
            "the model's weights are float16 already: --precision fp16 keeps float32 weights for the updates and "
            "computes in float16 itself. Remove model.half(), or .to(torch.float16), from the cell",
            field="model",
        )
    known = {id(p) for p in trainable}
    if not any(id(p) in known for group in workload.optimizer.param_groups for p in group["params"]):
        raise ConfigError(
            "the optimizer has no parameter of the model: make it from model.parameters() after the model",
            field="optimizer",
        )
    for is_so, feature in (
        (hasattr(workload.model, "_orig_mod"), Feature.COMPILED),
        (has_adapters(workload.model), Feature.ADAPTED),
    ):
        if is_so:
            check_feature(spec.plan.framework, spec.plan.plugin, feature, field="model")
    check_max_norm(workload.model, spec)
    if workload.beside and spec.plan.tp * spec.plan.pp > 1:
        raise ConfigError(
            f"the optimizer has parameters of {', '.join(workload.beside)}, which is not part of the model: a model "
            "that is split by --tp or --pp is trained alone. Use --plugin ddp, zero1 or zero2",
            field="optimizer",
        )

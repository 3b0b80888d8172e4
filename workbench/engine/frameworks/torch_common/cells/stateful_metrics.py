"""Metrics that keep a state over batches, as those of torchmetrics do: an AUROC of all samples is no mean over batches.

Each rank updates its own copy with its samples. At the end of an evaluation the states of all ranks are merged as
torchmetrics merges them, so that the values are those of one process.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.batch import Batch
from workbench.errors import ConfigError

#: a metric with a value per class gives so many at most
_MOST_CLASSES = 64
#: (outputs, batch) -> arguments of ``metric.update``
Arguments = Callable[[Any, Batch], Any]


def split_metrics(metrics: Any) -> tuple[dict[str, Any], dict[str, StatefulMetric]]:
    """The cell's ``metrics`` without those of torchmetrics, and these: ``Metric``, ``MetricCollection``, or a pair of
    one of them and ``function(outputs, batch)``. Those of a collection are called ``<name>_<metric>``."""
    if _is_collection(metrics):
        return {}, {name: StatefulMetric(metric, _preds_and_target) for name, metric in _members(metrics)}
    if not isinstance(metrics, Mapping):
        return metrics, {}
    others: dict[str, Any] = {}
    stateful: dict[str, StatefulMetric] = {}
    for name, found in metrics.items():
        is_pair = isinstance(found, tuple) and len(found) == 2 and callable(found[1])
        metric, arguments = found if is_pair else (found, _preds_and_target)
        if _is_collection(metric):
            stateful |= {f"{name}_{inner}": StatefulMetric(each, arguments) for inner, each in _members(metric)}
        elif _is_metric(metric):
            stateful[str(name)] = StatefulMetric(metric, arguments)
        else:
            others[name] = found
    return others, stateful


def _is_metric(value: Any) -> bool:
    library = sys.modules.get("torchmetrics")  # a cell that has one has imported it
    return library is not None and isinstance(value, library.Metric)


def _is_collection(value: Any) -> bool:
    library = sys.modules.get("torchmetrics")
    return library is not None and isinstance(value, library.MetricCollection)


def _members(collection: Any) -> Iterator[tuple[str, Any]]:
    return iter(list(collection.items()))


class StatefulMetric:
    """One metric of a cell. It is copied, so the cell's own object keeps the state that it has."""

    def __init__(self, metric: Any, arguments: Arguments) -> None:
        self._metric = copy.deepcopy(metric)
        self._arguments = arguments

    def begin(self, device: torch.device) -> None:
        """Forget all samples."""
        self._metric.to(device)
        self._metric.reset()

    def add(self, outputs: Any, batch: Batch) -> None:
        """Add the samples of a batch."""
        arguments = self._arguments(outputs, batch)
        if isinstance(arguments, Mapping):
            self._metric.update(**arguments)
        elif isinstance(arguments, tuple):
            self._metric.update(*arguments)
        else:
            self._metric.update(arguments)

    def values(self, name: str, exchange: Exchange, *, is_failed: bool) -> dict[str, Any]:
        """What the samples of all ranks give: name -> number or matrix. ``is_failed``: on some rank, so there is none.

        Collective; every rank gets the same. Ranks without a sample add nothing.
        """
        updated = self._metric.update_called and not is_failed
        found = exchange.gathered(pickle.dumps(copy.deepcopy(self._metric).cpu()) if updated else None)
        states = [pickle.loads(state) for state in found if state is not None]
        return dict(_named(name, _computed(states))) if states and not is_failed else {}


def _computed(metrics: list[Any]) -> Any:
    """What one metric with the states of all gives, by torchmetrics' own reduction of each state."""
    first = metrics[0]
    first.distributed_available_fn = lambda: len(metrics) > 1
    if len(metrics) == 1:
        return first.compute()
    seen = [_tensors_of(copy.deepcopy(metric)) for metric in metrics]
    if len({len(tensors) for tensors in seen}) > 1:
        raise ConfigError(
            f"{type(first).__name__} keeps a list entry per batch, and ranks have different numbers of batches: "
            "measure it in evaluate(model, loader), or leave it out",
            field="metrics",
        )
    turns = iter(range(len(seen[0])))

    def gather(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        turn = next(turns)
        return [tensors[turn] for tensors in seen]

    first.dist_sync_fn = gather
    return first.compute()


def _tensors_of(metric: Any) -> list[torch.Tensor]:
    """The state's tensors, in the order in which torchmetrics gathers them."""
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        found.append(tensor)
        return [tensor]

    metric.sync(dist_sync_fn=keep, distributed_available=lambda: True)
    return found


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Numbers and matrices of what a metric computed; those of classes and of parts have names of their own."""
    if isinstance(value, Mapping):
        for part, inner in value.items():
            yield from _named(f"{name}_{part}", inner)
        return
    tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    if tensor.numel() == 1:
        yield name, float(tensor)
    elif tensor.dim() == 1 and len(tensor) <= _MOST_CLASSES:
        for turn, number in enumerate(tensor.tolist()):
            yield f"{name}_{turn}", float(number)
    elif tensor.dim() == 2:
        yield name, tensor.tolist()
    else:
        raise ConfigError(
            f"it computed a tensor of shape {tuple(tensor.shape)}: a number, a matrix, a dict of them, or up to "
            f"{_MOST_CLASSES} values of classes can be shown",
            field="metrics",
        )


def _preds_and_target(outputs: Any, batch: Batch) -> tuple[Any, Any]:
    """What most metrics of torchmetrics take: the outputs (their ``logits``, of a model of the transformers library),
    and the last entry of a tuple or list, or ``labels`` of a mapping."""
    preds = outputs if isinstance(outputs, torch.Tensor) else getattr(outputs, "logits", None)
    target = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if isinstance(batch, Mapping):
        target = batch.get("labels")
    if preds is None or target is None:
        missing = f"outputs of type {type(outputs).__name__}" if preds is None else f"a {type(batch).__name__}"
        raise ConfigError(
            f"{missing}: which part the metric takes is not known; give a pair (metric, function), as in "
            '(Accuracy(...), lambda outputs, batch: (outputs["scores"], batch["y"]))',
            field="metrics",
        )
    return preds, target

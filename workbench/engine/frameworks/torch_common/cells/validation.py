"""What a cell declares of its validation: its data, ``metrics``, ``evaluate`` and ``sample``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from workbench.core.config import TrainSpec
from workbench.engine.data.loader_source import LoaderSource
from workbench.engine.data.replica_samplers import is_distributed
from workbench.engine.frameworks.torch_common.cells.cell_evaluation import CellEvaluation
from workbench.engine.frameworks.torch_common.cells.metrics import checked_metrics
from workbench.engine.frameworks.torch_common.cells.stateful_metrics import split_metrics
from workbench.errors import ConfigError

#: batch size of an ``eval_dataset`` where the dataloader has the batch size of training and does not say it
_BATCH_SIZE = 32


def evaluation_of(names: Mapping[str, Any], spec: TrainSpec) -> CellEvaluation | None:
    """The validation that a cell with these names defines; None if it defines none.

    A function ``evaluate`` or ``sample`` with other arguments is the cell's own business. ``ConfigError`` for data that
    cannot be read, and for what a pipeline cannot do.
    """
    data = _data(names, spec)
    evaluate = _function(names, "evaluate", ("model", "loader"))
    sample = _function(names, "sample", ("model",))
    declared, stateful = split_metrics(names["metrics"]) if data is not None and "metrics" in names else ({}, {})
    metrics = checked_metrics(declared, also=stateful)
    if evaluate is not None and (metrics or stateful):
        raise ConfigError(
            "metrics and evaluate(model, loader) contradict each other: return the metrics from evaluate, or leave it "
            "out",
            field="metrics",
        )
    for name, function in (("evaluate(model, loader)", evaluate), ("sample(model)", sample)):
        if function is not None and spec.plan.pp > 1:
            raise ConfigError(
                f"--pp {spec.plan.pp}: under pipeline parallelism no rank has the whole model, so {name} cannot be "
                "called: define eval_dataset and metrics, or train without --pp",
                field=name.partition("(")[0],
            )
    if data is None and evaluate is None and sample is None:
        return None
    return CellEvaluation(data, metrics=metrics, stateful=stateful, evaluate=evaluate, sample=sample)


def _data(names: Mapping[str, Any], spec: TrainSpec) -> LoaderSource | None:
    dataset, loader = names.get("eval_dataset"), names.get("eval_dataloader")
    if dataset is not None and loader is not None:
        raise ConfigError("define one of eval_dataset and eval_dataloader", field="eval_dataset")
    if dataset is not None:
        loader = DataLoader(_readable(dataset), batch_size=_batch_size(names, spec))
    if loader is None:
        return None
    if isinstance(loader, Iterator):
        raise ConfigError(
            f"eval_dataloader is a {type(loader).__name__}, which gives its data once, and every evaluation reads "
            "them: pass a DataLoader, or an object whose __iter__ starts from the beginning",
            field="eval_dataloader",
        )
    sampler = getattr(loader, "sampler", None)
    if is_distributed(sampler) and len(getattr(loader, "dataset", ())) % sampler.num_replicas:  # type: ignore[union-attr]
        raise ConfigError(
            "the sampler of eval_dataloader repeats samples, so that each replica has as many: leave it out, the "
            "batches are divided among the replicas, and every sample is counted once",
            field="eval_dataloader",
        )
    return LoaderSource(loader, seed=spec.seed)


def _batch_size(names: Mapping[str, Any], spec: TrainSpec) -> int:
    size = spec.batch_size or getattr(names.get("dataloader"), "batch_size", None) or _BATCH_SIZE
    return max(spec.plan.mesh.dp, int(size) // spec.accumulate)


def _readable(dataset: Any) -> Any:
    """``dataset`` as a DataLoader reads it."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        if not len(dataset):
            raise ConfigError("eval_dataset is empty: it needs at least one sample", field="eval_dataset")
        return dataset
    if isinstance(dataset, Iterator) or not isinstance(dataset, Iterable):
        raise ConfigError(
            f"eval_dataset is a {type(dataset).__name__}: every evaluation reads it from the beginning, so it must "
            "have len(dataset) and dataset[index], or an __iter__ that starts anew",
            field="eval_dataset",
        )
    return dataset if isinstance(dataset, IterableDataset) else _Iterated(dataset)


class _Iterated(IterableDataset[Any]):
    """Any iterable, for a DataLoader."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self._samples)


def _function(names: Mapping[str, Any], name: str, arguments: tuple[str, ...]) -> Callable[..., Any] | None:
    found = names.get(name)
    if not callable(found):
        return None
    try:
        inspect.signature(found).bind(*arguments)
    except (TypeError, ValueError):  # it takes others
        return None
    return found

"""The cell form: what the user's cell defined becomes a workload."""

from __future__ import annotations

import linecache
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from workbench.config import TrainSpec
from workbench.controls import knob
from workbench.engine.data import DatasetSource, LoaderSource
from workbench.engine.workload import BatchSource, Workload
from workbench.errors import ConfigError


def workload_from_cell(file: Path, spec: TrainSpec) -> Workload:
    """Run the cell in a copy of the rank's namespace, so that names pushed or defined by ``%%dist`` cells are there.

    The cell also sees ``spec`` and ``knob`` (``workbench.controls``). Its errors are raised as they are, with the lines
    of the cell in the traceback.
    """
    source = file.read_text(encoding="utf-8")
    before = {**_interactive_namespace(), "spec": spec, "knob": knob, "__name__": "__main__"}
    namespace = dict(before)
    linecache.cache[str(file)] = (len(source), None, source.splitlines(keepends=True), str(file))
    exec(compile(source, str(file), "exec"), namespace)
    # a name that only an earlier cell left on the rank is not part of this one
    defined = {name: value for name, value in namespace.items() if name not in before or before[name] is not value}
    return _workload(defined, spec)


def _workload(names: dict[str, Any], spec: TrainSpec) -> Workload:
    model, optimizer = names["model"], names["optimizer"]
    scheduler = names.get("lr_scheduler")
    if spec.lr is not None:
        if scheduler is not None:
            raise ConfigError("--lr and an lr_scheduler in the cell contradict each other: leave one out", field="--lr")
        for group in optimizer.param_groups:
            group["lr"] = spec.lr
    loader = names.get("dataloader")
    if loader is not None:
        if spec.shuffle:
            raise ConfigError("--shuffle is for a dataset; a dataloader has its own order", field="--shuffle")
        data: BatchSource = LoaderSource(loader, seed=spec.seed)
        dataset = loader.dataset if isinstance(loader, DataLoader) else None
    else:
        dataset = names["dataset"]
        data = DatasetSource(dataset, spec.batch_size, seed=spec.seed, shuffle=spec.shuffle)
    loss_fn = names.get("loss_fn")
    criterion = names.get("criterion") if loss_fn is None else None
    return Workload(
        model=model,
        optimizer=optimizer,
        data=data,
        loss_fn=loss_fn,
        criterion=_on_pairs(criterion) if criterion is not None else None,
        lr_scheduler=scheduler,
        tokens_per_sample=_tokens_per_sample(dataset),
    )


def _on_pairs(criterion: Any) -> Any:
    """``criterion(outputs, target)`` for batches that are (input, target) pairs, as torch's losses are called;
    ``criterion(outputs, batch)`` for any other batch."""

    def adapted(outputs: Any, batch: Any) -> Any:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        return criterion(outputs, batch[1] if pair else batch)

    return adapted


def _tokens_per_sample(dataset: Any) -> int:
    """Length of a sample's ``input_ids``; 1 for data without tokens."""
    try:
        sample = dataset[0]
    except (TypeError, KeyError, IndexError, NotImplementedError):
        return 1
    ids = sample.get("input_ids") if isinstance(sample, dict) else None
    shape = tuple(getattr(ids, "shape", None) or (1,))
    return int(shape[-1])


def _interactive_namespace() -> dict[str, Any]:
    """The namespace of the engine's shell; empty outside of one."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return dict(shell.user_ns) if shell is not None else {}

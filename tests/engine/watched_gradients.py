"""What ranks do in test_gradient_watch: train with the trainer itself, watched, and log to a run directory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tests.engine import boosted, models
from tests.engine.steered import Script
from workbench.core.config import TrainSpec
from workbench.engine.agree.control import AgreedControl
from workbench.engine.frameworks.colossal.plugin import Plan
from workbench.engine.frameworks.colossal.ranks import joined
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.sampler import Progress
from workbench.engine.watch.torch.gradient_watch import GradientWatch
from workbench.rundir.directory import CONTROL_FILE
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.layer_norms import gradient_rows
from workbench.telemetry.store import Store


class Batches:
    """The batches that the plain loop sees too."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Any]:
        step = start
        while True:
            yield models.part(models.batch(self.kind, step), dp, dp_size)
            step += 1


def train(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str,
    options: dict[str, Any],
    tables: list[str],
    initial_scale: float = 0.0,
    script: dict[str, list[Any]] | None = None,
) -> dict[str, Any]:
    """Columns of this rank's ``tables`` after ``steps`` of ``options``; ``script``: commands, as ``steered.Script``.

    The table "gradient rows" is ``gradients`` with the rows of ``layer_norms`` among them.
    """
    if initial_scale:
        Plan.initial_scale = initial_scale
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, "eval_every": 0, **options})
    control = directory / CONTROL_FILE
    control.touch()
    with joined(rank, ranks, directory, device_type="cpu"), RankLogWriter(directory, rank) as log:
        strategy = boosted.prepared(rank, spec, model)
        strategy.workload.data = Batches(model)
        watch = GradientWatch(spec, strategy, log, torch.device("cpu"))
        try:
            Trainer(
                run=directory,
                spec=spec,
                workload=strategy.workload,
                strategy=strategy,
                control=AgreedControl(directory, exchange_of(rank, ranks)),
                log=log,
                progress=Progress(),
                observers=[Script(directory, rank, dict(script or {}), 0.0), watch],
            ).run()
            watch.close()
            dist.barrier()
        finally:
            strategy.close()
    store = Store(directory)
    store.refresh()
    store.assumed = spec
    found = {"gradient rows": gradient_rows(store)}
    return {name: _own(found[name] if name in found else store.table(name), rank) for name in tables}


def _own(columns: dict[str, np.ndarray], rank: int) -> dict[str, list[Any]]:
    own = columns["rank"] == rank
    return {name: [_plain(value) for value in values[own].tolist()] for name, values in columns.items()}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def adamw(rank: int, ranks: int, directory: Path, *, model: str) -> dict[str, dict[str, float]]:
    """Norms per layer around the first step of AdamW, by its formulas (Loshchilov and Hutter 2019, algorithm 2) in
    float64 NumPy."""
    network = models.model(model).double().train()
    group = models.optimizer(network).param_groups[0]
    lr, decay, (beta1, beta2), eps = group["lr"], group["weight_decay"], group["betas"], group["eps"]
    data = torch.utils._pytree.tree_map(
        lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, models.batch(model, 0)
    )
    models.criterion(models.outputs(network, data), data).backward()
    squares: dict[str, np.ndarray] = {}
    for name, parameter in network.named_parameters():
        old, gradient = parameter.detach().numpy(), parameter.grad.numpy()
        first, second = (1 - beta1) * gradient, (1 - beta2) * gradient**2
        step = (first / (1 - beta1)) / (np.sqrt(second / (1 - beta2)) + eps)
        new = old * (1 - lr * decay) - lr * step
        found = np.array([np.sum(values**2) for values in (new, new - old, first, second)])
        layer = name.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0) + found
    names = ("weight_norm", "update_norm", "moment1_norm", "moment2_norm")
    return {layer: dict(zip(names, np.sqrt(total).tolist(), strict=True)) for layer, total in squares.items()}


def slices(rank: int, ranks: int, directory: Path, *, model: str, replicas: int) -> list[dict[str, float]]:
    """Per replica and layer, in float64: cosine between its gradient and the mean over the elements of its own slices,
    each parameter being cut into ``replicas`` equal slices."""
    gradients = [_gradients(model, replica, replicas) for replica in range(replicas)]
    mean = {name: np.mean([own[name] for own in gradients], axis=0) for name in gradients[0]}
    found = []
    for replica, own in enumerate(gradients):
        layers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for name in own:
            length = math.ceil(own[name].size / replicas)
            place = slice(replica * length, (replica + 1) * length)
            layers.setdefault(name.rpartition(".")[0], []).append((own[name][place], mean[name][place]))
        found.append({layer: _cosine(pairs) for layer, pairs in layers.items()})
    return found


def cosines(rank: int, ranks: int, directory: Path, *, model: str, replicas: int) -> list[list[float]]:
    """Between the gradients of every two replicas, in float64."""
    own = [list(_gradients(model, replica, replicas).values()) for replica in range(replicas)]
    return [[_cosine(list(zip(a, b, strict=True))) for b in own] for a in own]


def _gradients(model: str, index: int, count: int) -> dict[str, np.ndarray]:
    network = models.model(model).double().train()
    data = models.part(models.batch(model, 0), index, count)
    data = torch.utils._pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, data)
    models.criterion(models.outputs(network, data), data).backward()
    return {name: parameter.grad.numpy().ravel() for name, parameter in network.named_parameters()}


def _cosine(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    a, b = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))

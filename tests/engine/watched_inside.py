"""What ranks do in test_inside_watch: train with the trainer itself, looked at inside; and one process in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map

from tests.engine import boosted, models
from tests.engine.steered import Script
from tests.engine.watched import Log
from tests.engine.watched_gradients import Batches
from workbench.core.config import TrainSpec
from workbench.engine.agree.control import AgreedControl
from workbench.engine.entry import joined_of
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.frameworks.torch_common.trained import users_model
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.sampler import Progress
from workbench.engine.watch.inside import spectra
from workbench.engine.watch.inside.inside_watch import InsideWatch
from workbench.rundir.directory import CONTROL_FILE


def train(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str,
    options: dict[str, Any],
    script: dict[str, list[Any]] | None = None,
    change: str = "",
    wrap: str = "",
    iterations: int = 0,
) -> dict[str, Any]:
    """Records of this rank by type, the reasons of refused commands, how many hooks it left, and the weights that it
    holds as matrices. ``change``: of ``CHANGES``, ``wrap``: as ``boosted.workload``; ``iterations``: of singular
    values, at each look."""
    spectra.FIRST, spectra.LATER = (iterations or default for default in (spectra.FIRST, spectra.LATER))
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, "eval_every": 0, **options})
    (directory / CONTROL_FILE).touch()
    log = Log(rank)
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"):
        strategy = boosted.prepared(rank, spec, model, wrap=wrap)
        strategy.workload.data = Batches(model)
        hooks = _hooks(strategy.module)
        told: list[str] = []
        strategy.tell = lambda name, text: told.append(f"{name}: {text}")
        if change:
            CHANGES[change](users_model(strategy.module))
        observers = [Script(directory, rank, dict(script or {}), 0.0)]
        observers.append(InsideWatch(spec, strategy, log, torch.device("cpu")))
        try:
            Trainer(
                run=directory,
                spec=spec,
                workload=strategy.workload,
                strategy=strategy,
                control=AgreedControl(directory, exchange_of(rank, ranks)),
                log=log,  # type: ignore[arg-type]
                progress=Progress(),
                observers=observers,
            ).run()
            observers[-1].close()
            dist.barrier()
            matrices = [(one.layer, one.split, one.matrix.tolist()) for one in strategy.weight_matrices()]
            hooks = _hooks(strategy.module) - hooks
        finally:
            strategy.close()
    rows = log.rows()
    refused = [json.loads(row["value"]) for row in rows.pop("Event", []) if row["kind"] == "refused"]
    return {**rows, "hooks": hooks, "refused": refused, "matrices": matrices, "told": told}


def _hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _checkpointed(reentrant: bool) -> Callable[[torch.nn.Module], None]:
    def change(module: Any) -> None:
        module.gradient_checkpointing_enable({"use_reentrant": reentrant})

    return change


CHANGES = {"checkpointing": _checkpointed(False), "checkpointing reentrant": _checkpointed(True)}


def attention_alone(rank: int, ranks: int, directory: Path, *, model: str) -> dict[str, dict[str, float]]:
    """Entropy and largest logit of each attention over all queries, from queries and keys, in float64."""
    network = models.model(model).double().train()
    data = models.batch(model, 0)
    found: dict[str, dict[str, float]] = {}
    product = torch.nn.functional.scaled_dot_product_attention
    names = [name for name, module in network.named_modules() if type(module).__name__.endswith("Attention")]

    def seen(query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        logits = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).detach().numpy()
        length = logits.shape[-1]
        logits = np.where(np.tril(np.ones((length, length), dtype=bool)), logits, -np.inf)
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        entropy = -np.sum(chances * np.log(np.where(chances > 0, chances, 1)), axis=-1)
        uniform = np.log(np.arange(1, length + 1))
        found[names[len(found)]] = {
            "queries": entropy.size,
            "entropy": float(entropy.mean()),
            "entropy_share": float(entropy.mean() / uniform.mean()),
            "max_logit": float(logits.max()),
        }
        return product(query, key, *args, **kwargs)

    network.config._attn_implementation = "sdpa"
    torch.nn.functional.scaled_dot_product_attention = seen
    try:
        models.outputs(network, data)
    finally:
        torch.nn.functional.scaled_dot_product_attention = product
    return found


def routers_alone(rank: int, ranks: int, directory: Path, *, model: str) -> dict[str, dict[str, Any]]:
    """Of one process in float64 with the whole batch: entropy and load of each router, by NumPy."""
    network = models.model(model).double().train()
    found: dict[str, dict[str, Any]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            logits = output.detach().numpy()
            chances = np.exp(logits - logits.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            chosen = np.argsort(-logits, axis=-1)[:, : network.config.num_experts_per_tok]
            load = np.bincount(chosen.ravel(), minlength=logits.shape[-1])
            entropy = float(-np.sum(chances * np.log(chances), axis=-1).mean())
            found[name] = {"tokens": len(logits), "entropy": entropy, "load": (load / load.sum()).tolist()}

        return hook

    for name, module in network.named_modules():
        if name.endswith(".gate"):
            module.register_forward_hook(keep(name))
    models.outputs(network, models.batch(model, 0))
    return found


def alone(
    rank: int, ranks: int, directory: Path, *, model: str, share: int = 0, of: int = 1
) -> dict[str, dict[str, Any]]:
    """Of one process in float64 with the whole batch, each module's first output and its gradient: "layer what" ->
    figures by their definition. Of the ``share``-th ``of`` the batch: the loss of that share, over ``of``."""
    network = models.model(model).double().train()
    data = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, models.batch(model, 0))
    data = models.part(data, share, of)
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            leaves = output.values() if isinstance(output, dict) else torch.utils._pytree.tree_leaves(output)
            found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
            found = [leaf for leaf in found if leaf.numel() > 1]
            if found and found[0].requires_grad:
                found[0].retain_grad()
                outputs[name] = found[0]

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(keep(name))
    (models.criterion(models.outputs(network, data), data) / of).backward()
    found: dict[str, dict[str, Any]] = {}
    for name, output in outputs.items():
        for what, values in (("output", output), ("gradient", output.grad)):
            if values is not None:
                found[f"{name} {what}"] = _figures(values.detach().numpy())
    return found


def _figures(values: np.ndarray) -> dict[str, Any]:
    return {
        "norm": float(np.sqrt(np.sum(values**2))),
        "max_abs": float(np.abs(values).max()),
        "mean": float(values.mean()),
        "zero_fraction": float(np.mean(values == 0)),
        "numel": values.size,
    }

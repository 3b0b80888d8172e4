"""The other side of the comparisons: one process, a plain PyTorch loop, no Colossal-AI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.engine import models


def train(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str,
    steps: int = 20,
    clip: float = 0.0,
    optimizer_kind: str = "AdamW",
) -> dict[str, Any]:
    network = models.model(model).train()
    optimizer = models.optimizer(network, optimizer_kind)
    losses, norms = [], []
    for step in range(steps):
        data = models.batch(model, step)
        loss = models.criterion(models.outputs(network, data), data)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        norms.append(norm.item())
    return {"losses": losses, "norms": norms}


def steered(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str,
    steps: int,
    changes: dict[str, dict[str, Any]],
    shards: int = 1,
) -> list[float]:
    """Losses of a plain loop in which, after the steps that ``changes`` names, a person edits the script: ``clip``,
    ``weight_decay``, ``pieces`` (of each of ``shards`` shares of the batch) and ``frozen`` (the start of names)."""
    network = models.model(model).train()
    optimizer = models.optimizer(network)
    clip, pieces, frozen, losses = 0.0, 1, "-", []
    for step in range(steps):
        data, count = models.batch(model, step), shards * pieces
        found = []
        for index in range(count):
            piece = models.part(data, index, count)
            loss = models.criterion(models.outputs(network, piece), piece)
            (loss / count).backward()
            found.append(loss.item())
        for name, parameter in network.named_parameters():
            if name.startswith(frozen):
                parameter.grad = None
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - 0.5 * step / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(found) / count)
        change = changes.get(str(step + 1), {})
        clip, pieces, frozen = (change.get(*both) for both in (("clip", clip), ("pieces", pieces), ("frozen", frozen)))
        for group in optimizer.param_groups:
            group["weight_decay"] = change.get("weight_decay", group["weight_decay"])
    return losses


def gradients(rank: int, ranks: int, directory: Path, *, model: str, shards: int) -> list[dict[str, Any]]:
    """Statistics per layer of the first gradient in float64: of each of ``shards`` parts of the batch, then of all."""
    whole = _layers(model, 0, 1)
    parts = [_layers(model, index, shards) for index in range(shards)]
    return [{layer: _statistics(found[layer], whole[layer]) for layer in whole} for found in (*parts, whole)]


def _layers(model: str, index: int, count: int) -> dict[str, np.ndarray]:
    network = models.model(model).double().train()
    data = models.part(models.batch(model, 0), index, count)
    data = torch.utils._pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, data)
    models.criterion(models.outputs(network, data), data).backward()
    layers: dict[str, list[np.ndarray]] = {}
    for name, parameter in network.named_parameters():  # each tied parameter once, by its first name
        layers.setdefault(name.rpartition(".")[0], []).append(parameter.grad.numpy().ravel())
    return {layer: np.concatenate(parts) for layer, parts in layers.items()}


def _statistics(values: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    norm = float(np.sqrt(np.sum(values**2)))
    exponents, counts = np.unique(np.frexp(values[values != 0])[1] - 1, return_counts=True)
    return {
        "numel": values.size,
        "norm": norm,
        "max_abs": float(np.abs(values).max()),
        "mean": float(values.mean()),
        "zero_fraction": float(np.mean(values == 0)),
        "nonfinite_count": int(np.sum(~np.isfinite(values))),
        "cosine": float(values @ whole / (norm * np.sqrt(np.sum(whole**2)))),
        "norm_ratio": norm / float(np.sqrt(np.sum(whole**2))),
        "exponents": exponents.tolist(),
        "counts": counts.tolist(),
    }

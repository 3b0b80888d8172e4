"""Trainings of a small network in this process, as ranks would record them, with errors planted into the parallelism.

The network is a normalisation, two linear layers and a tanh between them. Data parallel: each replica has the gradient
of its half of the batch, and all have the mean. Tensor parallel: each rank holds half of the hidden units, and so a
part of the normalisation's gradient, of which all have the sum. ``fault`` names the error; it is made from ``FAULTY``
on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from workbench.core.mesh import Mesh
from workbench.verification.training import Training

STEPS, FAULTY, LR = 4, 2, 0.1
INPUTS, HIDDEN, OUTPUTS, BATCH = 6, 8, 3, 8
NORM, FIRST, SECOND = "norm.weight", "first.weight", "second.weight"
SHAPES = {NORM: (INPUTS,), FIRST: (HIDDEN, INPUTS), SECOND: (OUTPUTS, HIDDEN)}
#: no rank holds more than half of these under tensor parallelism: rows of the first, columns of the second
ROWS = np.arange(HIDDEN * INPUTS).reshape(HIDDEN, INPUTS)
COLUMNS = np.arange(OUTPUTS * HIDDEN).reshape(OUTPUTS, HIDDEN)

Weights = dict[str, torch.Tensor]


class Part:
    """One rank's recording in memory."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = {"shapes": SHAPES, "most": 1000, "samples": {}, "labels": {}, "skipped": [], **about}
        self._steps: dict[int, dict[str, np.ndarray]] = {}
        self._places: dict[str, np.ndarray] = {}

    def add(self, step: int, kind: str, name: str, values: torch.Tensor, place: np.ndarray | None = None) -> None:
        """Record a tensor, whole or the elements at ``place``."""
        flat = values.detach().reshape(-1).numpy().astype(np.float32)
        held = np.arange(flat.size) if place is None else place.reshape(-1)
        self._places[f"{'copy' if kind == 'copy' else 'saved'}/{name}"] = held
        self._steps.setdefault(step, {})[f"{kind}/{name}"] = flat if place is None else flat[held]

    def step(self, step: int) -> Mapping[str, np.ndarray]:
        return self._steps.get(step, {})

    def places(self) -> Mapping[str, np.ndarray]:
        return self._places

    def about(self) -> dict[str, Any]:
        return self._about


def initial() -> Weights:
    draw = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=draw) * 0.5 + (name == NORM) for name, shape in SHAPES.items()}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(BATCH, INPUTS, generator=draw)
    return inputs, inputs[:, :OUTPUTS].tanh()


def loss_and_gradients(weights: Weights, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, list[Weights]]:
    """The loss, and the gradients of each of two tensor-parallel ranks: whole ones of its half of the hidden units (0
    elsewhere), and its part of the normalisation's."""
    held = [{name: weight.clone().requires_grad_() for name, weight in weights.items()} for _ in range(2)]
    normal = torch.nn.functional.layer_norm(inputs, (INPUTS,))
    half = HIDDEN // 2
    outputs = sum(
        torch.tanh((normal * mine[NORM]) @ mine[FIRST][rows].T) @ mine[SECOND][:, rows].T
        for mine, rows in zip(held, (slice(0, half), slice(half, None)), strict=True)
    )
    loss = (outputs - targets).square().mean()
    loss.backward()
    return float(loss.detach()), [{name: mine[name].grad for name in mine} for mine in held]


def train(
    *,
    dp: int = 1,
    tp: int = 1,
    fault: str = "",
    accumulate: int = 1,
    noise: float = 0.0,
    about: Any = None,
    **more: Any,
) -> Training:
    """Train with ``dp`` x ``tp`` ranks. ``noise``: relative perturbation of the weights for forward and backward."""
    mesh = Mesh(dp=dp, tp=tp)
    parts = [Part({"perturbation": 5e-7, **_of_share(about or {}, rank // tp, dp)}) for rank in range(dp * tp)]
    weights, losses = initial(), []
    _record_weights(parts, mesh, 0, weights, weights)
    for step in range(1, STEPS + 1):
        is_faulty = step >= FAULTY
        used = _perturbed(weights, noise, step)
        shares = [tuple(each.chunk(dp)[index] for each in batch(step)) for index in range(dp)]
        found = [_accumulated(used, share, accumulate, fault if is_faulty else "") for share in shares]
        losses.append(float(np.mean([loss for loss, _ in found])))
        reduced = _reduced([gradients for _, gradients in found], fault if is_faulty else "", mesh)
        for rank, part in enumerate(parts):
            for name in SHAPES:
                part.add(step, "gradient", name, reduced[rank][name], _place(name, mesh, rank))
        before = weights
        whole = {name: sum(each[0][name] + each[1][name] for _, each in found) / dp for name in SHAPES}
        scale = 0.5 if is_faulty and fault == "clip" else 1.0
        weights = {name: weight - LR * scale * whole[name] for name, weight in weights.items()}
        stale = before if is_faulty and fault == "stale shard" else weights
        _record_weights(parts, mesh, step, weights, stale, copies=is_faulty and fault == "stale copy", before=before)
    return Training(mesh, parts, losses, **more)


def _of_share(about: dict[str, Any], index: int, dp: int) -> dict[str, Any]:
    """``about`` with those of its samples that a replica reads."""
    samples = about.get("samples", {})
    mine = {step: found[index * len(found) // dp : (index + 1) * len(found) // dp] for step, found in samples.items()}
    return {**about, "samples": mine}


def _perturbed(weights: Weights, noise: float, step: int) -> Weights:
    draw = torch.Generator().manual_seed(7 + step)
    return {name: w * (1 + noise * torch.randn(w.shape, generator=draw).sign()) for name, w in weights.items()}


def _accumulated(weights: Weights, share: Any, pieces: int, fault: str) -> tuple[float, list[Weights]]:
    """Loss and gradients of a replica over its gradient accumulation steps."""
    found = [loss_and_gradients(weights, *(each.chunk(pieces)[index] for each in share)) for index in range(pieces)]
    by = 1 if fault == "accumulation" else pieces
    gradients = [{name: sum(each[rank][name] for _, each in found) / by for name in SHAPES} for rank in range(2)]
    return float(np.mean([loss for loss, _ in found])), gradients


def _reduced(replicas: list[list[Weights]], fault: str, mesh: Mesh) -> list[Weights]:
    """The gradients that each rank ends with."""
    found = []
    for rank in range(mesh.world_size):
        here = mesh.coordinates(rank)
        chosen = [replicas[here.dp]] if fault == "not averaged over dp" else replicas
        by = {"averaged twice": len(chosen) ** 2, "summed": 1}.get(fault, len(chosen))
        gradients = {name: sum(each[0][name] + each[1][name] for each in chosen) / by for name in SHAPES}
        if fault == "not reduced over tp":
            gradients[NORM] = sum(each[here.tp][NORM] for each in chosen) / by
        if fault == "mixed up":
            gradients[FIRST] = gradients[FIRST].roll(HIDDEN // 2, 0)
        if fault == "no gradient":
            gradients[SECOND] = gradients[SECOND] * 0
        if fault == "part" and here.tp == 1:
            gradients[FIRST] = gradients[FIRST] + 0.3 * gradients[FIRST].flip(1)
        if fault == "backward":
            gradients[NORM] = gradients[NORM].flip(0) * 1.5
            gradients[FIRST] = gradients[FIRST] + gradients[FIRST].flip(1)
        found.append(gradients)
    return found


def _place(name: str, mesh: Mesh, rank: int) -> np.ndarray | None:
    if mesh.tp == 1 or name == NORM:
        return None
    half, turn = HIDDEN // 2, mesh.coordinates(rank).tp
    mine = slice(turn * half, (turn + 1) * half)
    return ROWS[mine] if name == FIRST else COLUMNS[:, mine]


def _record_weights(
    parts: list[Part],
    mesh: Mesh,
    step: int,
    weights: Weights,
    stale: Weights,
    *,
    copies: bool = False,
    before: Weights | None = None,
) -> None:
    """``stale``: what the last rank has of the second layer. ``copies``: it computes with what was ``before``."""
    for rank, part in enumerate(parts):
        is_last = rank == len(parts) - 1
        for name in SHAPES:
            own = stale if is_last and name == SECOND else weights
            part.add(step, "weight", name, own[name], _place(name, mesh, rank))
            part.add(step, "copy", name, (before if copies and is_last else own)[name], _place(name, mesh, rank))

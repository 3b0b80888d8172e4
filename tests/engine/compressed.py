"""The compressors again, in NumPy and float64, for all ranks at once: what those of the product are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.engine.communicated import RATE, SAMPLES, SHAPES, STEPS, batch, numbers
from workbench.engine.communication.base import Draws

#: the gradients of all ranks, the number, the draws of each rank, the name -> the mean, and what each rank sent
Rule = Callable[[list[np.ndarray], float, list[Draws], dict[str, Any]], tuple[np.ndarray, list[np.ndarray]]]


def _unbiased(levels: int) -> Rule:
    def rule(gradients, number, draws, memory):
        sent = []
        for gradient, draw in zip(gradients, draws, strict=True):
            unit = np.abs(gradient).max() / levels
            noise = torch.rand(gradient.size, generator=draw.own()).double().numpy().reshape(gradient.shape)
            sent.append(np.clip(np.floor(gradient / unit + noise), -levels, levels) * unit)
        return np.mean(sent, axis=0), sent

    return rule


def _rounded(kind: str) -> Rule:
    def rule(gradients, number, draws, memory):
        def cast(array: np.ndarray) -> np.ndarray:
            return torch.tensor(array).to(getattr(torch, kind)).double().numpy()

        total = 0
        for gradient in gradients:
            total = cast(total + cast(cast(gradient) / len(gradients)))
        return total, [cast(gradient) for gradient in gradients]

    return rule


def _largest(gradients, number, draws, memory):
    sent = []
    for gradient in gradients:
        flat = gradient.ravel()
        places = np.argsort(-np.abs(flat))[: max(1, round(flat.size * number))]
        one = np.zeros_like(flat)
        one[places] = flat[places]
        sent.append(one.reshape(gradient.shape))
    return np.mean(sent, axis=0), sent


def _drawn(gradients, number, draws, memory):
    size = gradients[0].size
    places = torch.randperm(size, generator=draws[0].shared()).numpy()[: max(1, round(size * number))]
    mask = np.zeros(size)
    mask[places] = 1
    sent = [gradient * mask.reshape(gradient.shape) for gradient in gradients]
    return np.mean(sent, axis=0), sent


def _scaled_signs(gradients, number, draws, memory):
    sent = [np.where(gradient >= 0, 1, -1) * np.abs(gradient).mean() for gradient in gradients]
    return np.mean(sent, axis=0), sent


def _majority(gradients, number, draws, memory):
    votes = [np.where(gradient >= 0, 1, -1) for gradient in gradients]
    return np.sign(np.sum(votes, axis=0)), [vote.astype(float) for vote in votes]


def _low_rank(gradients, number, draws, memory):
    rank, shape = int(number), gradients[0].shape
    rows, columns = shape[0], int(np.prod(shape[1:]))
    if len(shape) < 2 or rank * (rows + columns) >= rows * columns:
        return np.mean(gradients, axis=0), list(gradients)
    if "right" not in memory:
        memory["right"] = torch.randn(columns, rank, generator=draws[0].shared()).double().numpy()
    matrices = [gradient.reshape(rows, columns) for gradient in gradients]
    left, _ = np.linalg.qr(np.mean([matrix @ memory["right"] for matrix in matrices], axis=0))
    memory["right"] = np.mean([matrix.T @ left for matrix in matrices], axis=0)
    mean = (left @ memory["right"].T).reshape(shape)
    return mean, [mean] * len(gradients)


RULES: dict[str, Rule] = {
    "fp16": _rounded("float16"),
    "bf16": _rounded("bfloat16"),
    "int8": _unbiased(127),
    "int4": _unbiased(7),
    "terngrad": _unbiased(1),
    "topk": _largest,
    "randomk": _drawn,
    "sign": _scaled_signs,
    "signsgd": _majority,
    "powersgd": _low_rank,
}


def gradients_of(weights: dict[str, np.ndarray], step: int, rank: int) -> dict[str, np.ndarray]:
    """By hand: of the loss of ``communicated.train``."""
    inputs, targets = (tensor.numpy() for tensor in batch(step, rank))
    hidden = np.tanh(inputs @ weights["weight"].T + weights["bias"])
    error = 2 * (hidden @ weights["head.weight"].T + weights["head.bias"] - targets) / SAMPLES
    before = (error @ weights["head.weight"]) * (1 - hidden**2)
    return {
        "weight": before.T @ inputs,
        "bias": before.sum(0),
        "head.weight": error.T @ hidden,
        "head.bias": error.sum(0),
    }


def first_weights() -> dict[str, np.ndarray]:
    """Those of ``communicated.Model``."""
    return {
        "weight": numbers("weight", SHAPES["weight"]).float().double().numpy() * np.float32(0.3),
        "bias": np.zeros(SHAPES["bias"]),
        "head.weight": numbers("head", SHAPES["head.weight"]).numpy() * 0.3,
        "head.bias": np.zeros(SHAPES["head.bias"]),
    }


def train(name: str, number: float, *, feedback: bool, ranks: int, seed: int = 7) -> list[dict[str, np.ndarray]]:
    """The weights after each step."""
    weights = first_weights()
    left_over = {key: [np.zeros(shape) for _ in range(ranks)] for key, shape in SHAPES.items()}
    memory: dict[str, dict[str, Any]] = {key: {} for key in SHAPES}
    found = []
    for step in range(STEPS):
        each = [gradients_of(weights, step, rank) for rank in range(ranks)]
        for place, key in enumerate(SHAPES):
            # right factors are drawn before the first step, as step 0
            draws = [Draws(seed, rank, step, place, torch.device("cpu")) for rank in range(ranks)]
            asked = [gradients[key] + rest for gradients, rest in zip(each, left_over[key], strict=True)]
            mean, sent = RULES[name](asked, number, draws, memory[key])
            if feedback:
                left_over[key] = [whole - part for whole, part in zip(asked, sent, strict=True)]
            weights[key] = weights[key] - RATE * mean
        found.append(dict(weights))
    return found

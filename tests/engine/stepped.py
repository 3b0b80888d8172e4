"""Algorithms of local steps again, in NumPy and float64, for all ranks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.engine.communicated import RATE, STEPS
from tests.engine.compressed import first_weights, gradients_of
from workbench.engine.communication.base import Draws

Weights = dict[str, np.ndarray]
#: the weights of all ranks after a step (from 1 on), the number, the settings, what is kept: changes the weights
Rule = Callable[[list[Weights], int, float, dict[str, float], dict[str, Any]], None]


def _mean(ranks: list[Weights], name: str) -> np.ndarray:
    return np.mean([weights[name] for weights in ranks], axis=0)


def _give(ranks: list[Weights], name: str, value: np.ndarray) -> None:
    for weights in ranks:
        weights[name] = value.copy()


def _local_sgd(ranks, step, number, settings, kept):
    if step % number == 0:
        for name in ranks[0]:
            _give(ranks, name, _mean(ranks, name))


def _post_local_sgd(ranks, step, number, settings, kept):
    after = settings["after"]
    # gradients averaged from equal weights: as weights averaged in every step
    if step <= after or (step - after) % number == 0:
        for name in ranks[0]:
            _give(ranks, name, _mean(ranks, name))


def _outer(ranks, name, settings, kept):
    before = kept.setdefault(f"before {name}", first_weights()[name])
    gradient = before - _mean(ranks, name)
    momentum = kept[f"momentum {name}"] = settings["momentum"] * kept.get(f"momentum {name}", 0.0) + gradient
    kept[f"before {name}"] = before - settings["lr"] * (gradient + settings["momentum"] * momentum)
    _give(ranks, name, kept[f"before {name}"])


def _diloco(ranks, step, number, settings, kept):
    if step % number == 0:
        for name in ranks[0]:
            _outer(ranks, name, settings, kept)


def _streaming(ranks, step, number, settings, kept):
    fragments = settings["fragments"]
    for place, name in enumerate(ranks[0]):
        turn = place % int(fragments)
        if step in [turn * int(number) // int(fragments) + times * int(number) for times in range(1, STEPS)]:
            _outer(ranks, name, settings, kept)


def _sparta(ranks, step, number, settings, kept):
    for place, name in enumerate(ranks[0]):
        draws = Draws(7, 0, step, place, torch.device("cpu"))
        size = ranks[0][name].size
        places = torch.randperm(size, generator=draws.shared()).numpy()[: max(1, round(size * number))]
        mean = _mean(ranks, name).ravel()
        for weights in ranks:
            weights[name] = weights[name].copy()
            weights[name].ravel()[places] = mean[places]


RULES: dict[str, Rule] = {
    "local-sgd": _local_sgd,
    "post-local-sgd": _post_local_sgd,
    "diloco": _diloco,
    "streaming-diloco": _streaming,
    "sparta": _sparta,
}


def train(name: str, number: float, settings: dict[str, float], ranks: int) -> list[list[Weights]]:
    """The weights of all ranks after each step."""
    held = [first_weights() for _ in range(ranks)]
    kept: dict[str, Any] = {}
    found = []
    for step in range(STEPS):
        for rank, weights in enumerate(held):
            gradients = gradients_of(weights, step, rank)
            weights.update({key: weights[key] - RATE * gradients[key] for key in weights})
        RULES[name](held, step + 1, number, settings, kept)
        found.append([dict(weights) for weights in held])
    return found

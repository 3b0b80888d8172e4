"""What an algorithm of local steps is on a rank: when ranks, which step by themselves, exchange weights, and how."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workbench.engine.communication.base import Draws


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter of this rank, after its update. ``value``: changed in place; ``kept``: what ``LocalSteps.state`` made
    for it; ``draws.step`` counts steps from 1."""

    name: str
    value: torch.Tensor
    kept: Mapping[str, torch.Tensor]
    draws: Draws


class LocalSteps(ABC):  # noqa: B024  # a class of a cell overrides what it does otherwise
    """Every ``number`` steps all ranks take the mean of their weights: local SGD (Stich, arXiv 1805.09767).

    ``number``: of ``NAME:NUMBER``; further arguments are the settings. What is overridden changes what is exchanged,
    when, or what becomes of the mean. All ranks answer alike; ``send`` gives as many elements on each.
    """

    #: whether ranks hold the same weights after all of them were received
    makes_alike = True

    def __init__(self, number: float, **settings: float) -> None:
        self.number = number
        self.settings = settings

    def averages_gradients(self, step: int) -> bool:
        """Whether gradients of this step (from 1 on) are averaged as without an algorithm, so that ranks do not
        part."""
        return False

    def is_due(self, step: int, place: int) -> bool:
        """Whether the parameter at ``place`` in the model is exchanged after this step."""
        return step % int(self.number) == 0

    def state(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """What it keeps of a parameter from step to step, for checkpoints: tensors that it changes in place."""
        return {}

    def begin(self, weight: Weight) -> None:
        """Local steps with this weight begin: it was received, or the training begins."""
        return

    def send(self, weight: Weight) -> torch.Tensor:
        """What is averaged over the ranks, of a shape that depends on the weight's only."""
        return weight.value

    def receive(self, weight: Weight, mean: torch.Tensor) -> None:
        """Change the weight, given the mean of what ranks sent."""
        weight.value.copy_(mean)

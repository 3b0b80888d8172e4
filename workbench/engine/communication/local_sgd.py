"""Weights averaged now and then, whole or in part."""

from __future__ import annotations

import torch

from workbench.engine.communication.catalogue import kept
from workbench.engine.communication.local_steps import LocalSteps, Weight


class LocalSgd(LocalSteps):
    """Local SGD: with ``number`` steps between averages, SGD converges as fast as if ranks spoke in each of them, for
    as many times fewer rounds (Stich, arXiv 1805.09767)."""


class PostLocalSgd(LocalSteps):
    """Post-local SGD: gradients of the first steps are averaged, then it is local SGD, which generalises better than
    large batches do (Lin et al., arXiv 1808.07217)."""

    def averages_gradients(self, step: int) -> bool:
        return step <= self.settings["after"]

    def is_due(self, step: int, place: int) -> bool:
        since = step - int(self.settings["after"])
        return since > 0 and since % int(self.number) == 0


class Sparta(LocalSteps):
    """SPARTA: in every step the mean of a few elements, drawn alike on all ranks, which keeps weights correlated (Beton
    et al., OpenReview stFPf3gzq1). Ranks never hold the same."""

    makes_alike = False

    def is_due(self, step: int, place: int) -> bool:
        return True

    def send(self, weight: Weight) -> torch.Tensor:
        return weight.value.flatten()[self._places(weight)]

    def receive(self, weight: Weight, mean: torch.Tensor) -> None:
        flat = weight.value.flatten()
        flat[self._places(weight)] = mean.to(flat.dtype)
        weight.value.copy_(flat.view_as(weight.value))

    def _places(self, weight: Weight) -> torch.Tensor:
        length = weight.value.numel()
        drawn = torch.randperm(length, generator=weight.draws.shared(), device=weight.value.device)
        return drawn[: kept(length, self.number)]

"""DiLoCo: an optimizer of its own takes the mean of what ranks' weights changed by for a gradient."""

from __future__ import annotations

import torch

from workbench.engine.communication.local_steps import LocalSteps, Weight


class DiLoCo(LocalSteps):
    """Every ``number`` steps a step of SGD with Nesterov momentum from the weights before them, whose gradient is the
    mean over ranks of what they changed by (Douillard et al., arXiv 2311.08105, algorithm 1). With 500 inner steps of
    AdamW, 8 ranks are as good as in synchronous training."""

    def state(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weights before the local steps, and the outer momentum."""
        return {"before": value.clone(), "momentum": torch.zeros_like(value)}

    def begin(self, weight: Weight) -> None:
        weight.kept["before"].copy_(weight.value)

    def send(self, weight: Weight) -> torch.Tensor:
        """The outer gradient."""
        return weight.kept["before"] - weight.value

    def receive(self, weight: Weight, mean: torch.Tensor) -> None:
        """As ``torch.optim.SGD`` with ``nesterov=True``."""
        rate, share, momentum = self.settings["lr"], self.settings["momentum"], weight.kept["momentum"]
        momentum.mul_(share).add_(mean)
        weight.value.copy_(weight.kept["before"] - rate * (mean + share * momentum))


class StreamingDiLoCo(DiLoCo):
    """DiLoCo of one fragment of the model at a time: each is exchanged every ``number`` steps, one after another, so
    that as many times fewer bytes are sent at once (Douillard et al., arXiv 2501.18512, section 3.1). Parameters go to
    fragments in turn, which is the paper's strided pattern."""

    makes_alike = False

    def is_due(self, step: int, place: int) -> bool:
        every, fragments = int(self.number), int(self.settings["fragments"])
        first = place % fragments * every // fragments
        return step > first and (step - first) % every == 0

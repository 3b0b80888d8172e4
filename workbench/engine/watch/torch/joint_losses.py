"""Names losses of models of the transformers library that look at all samples of a batch together.

Such a loss is no mean over samples or labels, so the mean over the pieces of a batch is not that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy

#: entries of a model's outputs that its loss is made of -> what that part of the loss is
_PARTS = {
    "aux_loss": "how evenly a router spreads all tokens over the experts",
    "encoder_aux_loss": "how evenly a router spreads all tokens over the experts",
    "decoder_aux_loss": "how evenly a router spreads all tokens over the experts",
    "diversity_loss": "how evenly all samples use the codebook",
    "contrastive_loss": "a comparison of samples with each other",
    "loss_dict": "averages over all objects in the images",
    "logits_per_image": "a comparison of samples with each other",
    "logits_per_audio": "a comparison of samples with each other",
    "logits_per_video": "a comparison of samples with each other",
}


class JointLosses(StepObserver):
    """Looks at the outputs of ``model``, and of models of the transformers library inside it, until it has told of
    such a loss. Where a batch is not cut into pieces, it is silent."""

    def __init__(self, spec: TrainSpec, strategy: Strategy, model: torch.nn.Module) -> None:
        self._strategy = strategy
        found = [module for module in model.modules() if hasattr(module, "config")] if spec.pieces > 1 else []
        theirs = [module for module in found if type(module).__module__.startswith("transformers.")]
        self._handles = [module.register_forward_hook(self._look) for module in theirs]

    def _look(self, module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        if torch.compiler.is_compiling() or not isinstance(outputs, Mapping) or outputs.get("loss") is None:
            return
        what = [text for name, text in _PARTS.items() if isinstance(outputs.get(name), torch.Tensor | dict)]
        if what:
            self._strategy.tell(
                "joint_loss",
                f"the loss of {type(module).__name__} holds {what[0]}, and each rank and gradient accumulation step "
                "computes it for its own samples: loss and gradients are not those of one process with the whole batch",
            )
            self.close()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

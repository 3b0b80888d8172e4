"""Creates models of the transformers library with random weights that depend on the seed only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def seeded_model(class_name: str, config: Any, seed: int) -> torch.nn.Module:
    """Create a model of the transformers class ``class_name``, with equal weights on every rank.

    Torch's random generators keep their state. The model is created on the rank's device, which for a large model takes
    a second instead of a minute on the CPU; without weights on the meta device where it is only described.
    """
    import torch
    import transformers

    from workbench.engine.planned.shapes import makes_shapes_only

    if makes_shapes_only():
        with torch.device("meta"):
            return getattr(transformers, class_name)(config)
    on_gpu = torch.cuda.is_available()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        torch.manual_seed(seed)
        with torch.device("cuda" if on_gpu else "cpu"):
            return getattr(transformers, class_name)(config)


def collate_tokens(samples: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of a language model: sequences of equal length, each token of which is also a label."""
    import torch

    tokens = torch.stack(samples)
    return {"input_ids": tokens, "labels": tokens}


def loss_of_model(outputs: Any, _batch: Any) -> torch.Tensor:
    """The loss computed by the model, which is also correct when its logits are sharded over tensor-parallel ranks."""
    return outputs.loss

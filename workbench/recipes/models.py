"""Models of the transformers library with random weights that depend on the seed alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def seeded_model(class_name: str, config: Any, seed: int) -> torch.nn.Module:
    """A model of that class of transformers, the same on every rank; torch's generators are left as they were.

    It is made on the rank's device, where a large one takes a moment instead of a minute.
    """
    import torch
    import transformers

    on_gpu = torch.cuda.is_available()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        torch.manual_seed(seed)
        with torch.device("cuda" if on_gpu else "cpu"):
            return getattr(transformers, class_name)(config)

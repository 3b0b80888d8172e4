"""Where this rank computes."""

from __future__ import annotations

import torch


def rank_device(kind: str | None = None) -> torch.device:
    """This rank's GPU (one is visible to each rank), or the processor; ``kind`` "cpu" or "cuda" decides which."""
    if kind is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")


def backend_of(device: torch.device) -> str:
    """The communication library for tensors on ``device``."""
    return "nccl" if device.type == "cuda" else "gloo"

"""Where this rank computes."""

from __future__ import annotations

import torch


def rank_device() -> torch.device:
    """This rank's GPU (one is visible to each rank), or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

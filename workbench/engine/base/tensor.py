"""Tensors of whichever tensor library a rank has loaded; none is loaded here."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor. Without torch in the process it is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: Any) -> bool:
    """Whether ``value`` is a torch tensor or a NumPy array of at least one dimension."""
    return (is_tensor(value) or isinstance(value, np.ndarray)) and value.ndim > 0


def is_sharded(value: Any) -> bool:
    """Whether ``value`` is a ``DTensor``, of which a rank has a part."""
    return hasattr(value, "placements") and hasattr(value, "to_local")


def local_part(tensor: Any) -> Any:
    """This rank's shard of a ``DTensor``; any other tensor is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor

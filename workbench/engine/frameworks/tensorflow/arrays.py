"""Tensors of TensorFlow as torch's, and back. On the host no number changes on the way."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf
import torch

from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.containers import mapped


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A view of a torch tensor; NumPy itself has no bfloat16."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        viewed: np.ndarray[Any, Any] = tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return viewed
    return tensor.numpy()


def to_torch(tensor: Any) -> torch.Tensor:
    """A copy of a tensor, a variable or the slices of a gradient of TensorFlow."""
    array = np.array(tf.convert_to_tensor(tensor).numpy())
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_tensorflow(leaf: Any) -> Any:
    """A torch tensor or an array as a tensor of TensorFlow that shares no memory with it; anything else as it is."""
    if isinstance(leaf, torch.Tensor):
        return tf.constant(np.array(to_numpy(leaf)))
    if isinstance(leaf, np.ndarray) and leaf.dtype != object:
        return tf.constant(leaf)
    return leaf


def batch_of(batch: Batch) -> Any:
    """The contents of ``batch`` with TensorFlow's tensors; containers keep their types."""
    return mapped(to_tensorflow, contents(batch))

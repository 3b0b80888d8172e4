"""The precision of a run, in which a Keras model computes over weights that stay as they are."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from workbench.engine.frameworks.tensorflow.mirror import set_past_keras

_POLICIES = {"bf16": "mixed_bfloat16", "fp16": "mixed_float16"}
_HALVES = (tf.float16, tf.bfloat16)


def compute_in(model: keras.Model, precision: str) -> None:
    """Let the layers of ``model`` compute in half precision where a run asks for it, but for those that the cell gave a
    ``dtype``. What the model returns is in float32, as of models of torch under autocast."""
    policy = _POLICIES.get(precision)
    if policy is None:
        return
    default = keras.config.dtype_policy()
    for layer in model._flatten_layers():
        if layer.dtype_policy is default:  # made without a ``dtype``
            layer.dtype_policy = policy
    call = model.call

    def in_float32(*args: Any, **kwargs: Any) -> Any:
        return tf.nest.map_structure(widened, call(*args, **kwargs))

    set_past_keras(model, "call", in_float32)


def widened(value: Any) -> Any:
    """A tensor of half precision as float32; anything else as it is."""
    return tf.cast(value, tf.float32) if isinstance(value, tf.Tensor) and value.dtype in _HALVES else value

"""A cell that defines a Keras model: what it defines, as the engine trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.containers import mapped
from workbench.engine.frameworks.tensorflow.arrays import batch_of, to_torch
from workbench.engine.frameworks.tensorflow.mirror import MirroredModel
from workbench.engine.frameworks.tensorflow.optimizer import KerasOptimizer
from workbench.engine.frameworks.tensorflow.precision import compute_in
from workbench.errors import ConfigError

#: names that a cell may define for torch, and what to do in their place
_REFUSED = {
    "pretrained": "it is a model of PyTorch: define a Keras model",
    "lora": "adapters are for models of PyTorch: leave it out",
    "criterion": "losses of Keras take (target, outputs): define loss_fn(model, batch)",
    "lr_scheduler": "schedules are Keras's: give the optimizer one of keras.optimizers.schedules as learning_rate",
}
#: what an optimizer of Keras is told after it was made, which its configuration does not have
_NOT_IN_CONFIG = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
_SHOWN = 3


def adopted(names: Mapping[str, Any], spec: TrainSpec) -> dict[str, Any]:
    """What a cell defines, with a module of torch for its Keras model, an optimizer of torch for that of Keras, and its
    data as torch's. ``ConfigError`` for what cannot be trained so."""
    for name, why in _REFUSED.items():
        if names.get(name) is not None:
            raise ConfigError(f"{name} is not available with --framework tensorflow: {why}", field=name)
    model = MirroredModel(_model(names["model"]))
    compute_in(model.model, spec.precision)
    optimizer, schedule = _optimizer(names["optimizer"])
    rate = schedule if isinstance(schedule, float) else 1.0
    found = {**names, "model": model, "optimizer": KerasOptimizer(optimizer, model, rate)}
    if not isinstance(schedule, float):
        found["lr_scheduler"] = torch.optim.lr_scheduler.LambdaLR(
            found["optimizer"], lambda step: float(schedule(step))
        )
    for name in ("dataset", "dataloader", "eval_dataset", "eval_dataloader"):
        if isinstance(names.get(name), tf.data.Dataset):
            found[name] = _Read(names[name])
    if isinstance(names.get("metrics"), Mapping):
        found["metrics"] = {name: _metric(each) for name, each in names["metrics"].items()}
    if callable(names.get("evaluate")):
        found["evaluate"] = _evaluate(names["evaluate"])
    return found


def _model(model: Any) -> keras.Model:
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"model is a {type(model).__name__}: --framework tensorflow trains a keras.Model, such as "
            "keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])",
            field="model",
        )
    unbuilt = [layer.name for layer in model._flatten_layers() if not layer.built]
    if unbuilt:
        raise ConfigError(
            f"{', '.join(unbuilt[:_SHOWN])} of the model has no weights yet: begin the model with keras.Input(shape), "
            "or call it once in the cell, as in model(x[:1])",
            field="model",
        )
    if not model.trainable_variables:
        raise ConfigError("no weight of the model is trainable: nothing to train", field="model")
    if model.dtype_policy.compute_dtype == "float16":
        raise ConfigError(
            "the model computes in float16, whose gradients need a loss scale: make it in float32, and use --precision "
            "fp16, which has one",
            field="model",
        )
    return model


def _optimizer(optimizer: Any) -> tuple[keras.optimizers.Optimizer, Any]:
    """A new optimizer with the options of the cell's, which may hold a schedule, and that or its learning rate."""
    if not isinstance(optimizer, keras.optimizers.Optimizer) or hasattr(optimizer, "inner_optimizer"):
        raise ConfigError(
            f"optimizer is a {type(optimizer).__name__}: --framework tensorflow takes one of keras.optimizers, such as "
            "keras.optimizers.AdamW(1e-3)",
            field="optimizer",
        )
    if optimizer.gradient_accumulation_steps:
        raise ConfigError(
            "the optimizer has gradient_accumulation_steps, which counts steps by itself: leave it out, and use "
            "--accumulate",
            field="optimizer",
        )
    if optimizer.loss_scale_factor is not None:
        raise ConfigError(
            f"the optimizer has loss_scale_factor={optimizer.loss_scale_factor}, by which it divides gradients of a "
            "loss that fit() would have multiplied: leave it out; --precision fp16 has a loss scale of its own",
            field="optimizer",
        )
    steps = int(optimizer.iterations.numpy())
    if steps:
        raise ConfigError(
            f"the optimizer has made {steps} steps in the cell, and a run begins with a new one: make it anew behind "
            "them",
            field="optimizer",
        )
    schedule = optimizer._learning_rate
    is_schedule = isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule)
    if not is_schedule and callable(schedule) and not isinstance(schedule, keras.Variable):
        raise ConfigError("the learning rate is a function: give a number or a schedule of Keras", field="optimizer")
    rate = float(schedule(0)) if is_schedule else float(np.array(optimizer.learning_rate))
    new = type(optimizer).from_config({**optimizer.get_config(), "learning_rate": rate})
    for name in _NOT_IN_CONFIG:
        if hasattr(optimizer, name):
            setattr(new, name, getattr(optimizer, name))
    given, found = _plain(optimizer), _plain(new)
    for name in sorted(given.keys() | found.keys()):
        if given.get(name) != found.get(name):
            raise ConfigError(
                f"{name} of the optimizer is {given.get(name)!r}, and {found.get(name)!r} in one that is made from its "
                "get_config(), as a run does: let get_config() tell it",
                field="optimizer",
            )
    return new, schedule if is_schedule else rate


def _plain(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Options of an optimizer, and what a cell has set on it."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if not name.startswith("_")
        and name not in ("built", "name")
        and (value is None or isinstance(value, bool | int | float | str | tuple))
    }


class _Read:
    """A ``tf.data.Dataset``, each of whose elements is read as tensors of torch and arrays."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        for element in self._dataset:
            yield mapped(_value, element)


def _value(leaf: Any) -> Any:
    if not isinstance(leaf, tf.Tensor):
        return leaf
    if leaf.dtype == tf.string:
        return leaf.numpy().tolist() if leaf.shape.rank else leaf.numpy().decode()
    return to_torch(leaf)


def _metric(metric: Any) -> Any:
    """A function of outputs and a batch, both of TensorFlow's tensors."""
    if not callable(metric) or isinstance(metric, keras.metrics.Metric):
        raise ConfigError(
            f"a metric is a {type(metric).__name__}: define a function of (outputs, batch) that returns a number or "
            "(sum, count)",
            field="metrics",
        )

    def computed(outputs: Any, batch: Any) -> Any:
        return _numbers(metric(outputs, batch_of(batch)))

    return computed


def _evaluate(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    def evaluated(model: Any, loader: Any) -> Any:
        found = evaluate(model, None if loader is None else (batch_of(batch) for batch in loader))
        return _numbers(found)

    return evaluated


def _numbers(found: Any) -> Any:
    return mapped(lambda leaf: to_torch(leaf) if isinstance(leaf, tf.Tensor | tf.Variable) else leaf, found)

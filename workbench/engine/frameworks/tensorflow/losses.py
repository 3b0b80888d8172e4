"""Losses and gradients by TensorFlow: a cell's ``loss_fn`` under a gradient tape, as one function of autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
import torch

from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in
from workbench.engine.frameworks.tensorflow.arrays import batch_of, to_torch
from workbench.engine.frameworks.tensorflow.mirror import MirroredModel, Passed, set_past_keras
from workbench.engine.frameworks.tensorflow.precision import widened
from workbench.engine.frameworks.torch_common.batches import call_model, first_output
from workbench.engine.frameworks.torch_common.losses.terms import WHOLE, Division, LossTerm
from workbench.errors import ConfigError


class _Calls(keras.Layer):
    """Calls a function inside a call of Keras, whose layers are then in training mode, or not, unless they are told.
    What it raises is kept as ``error``: Keras would put words of its own around it."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(autocast=False)
        self.held = model
        self.compute: Callable[[], Any] = lambda: None
        self.error: Exception | None = None

    def call(self, training: bool | None = None) -> Any:
        """The result of ``compute``."""
        try:
            return self.compute()
        except Exception as error:  # raised where this was called
            self.error = error
            return None


class KerasLosses:
    """As ``WholeModel``, of a Keras model."""

    def __init__(self, workload: Workload, mirrored: MirroredModel) -> None:
        assert workload.loss_fn is not None  # check refused a workload without
        self._loss_fn: Any = workload.loss_fn
        self._mirrored = mirrored
        self._calls = _Calls(mirrored.model)
        self._searching = False

    @contextmanager
    def searching(self) -> Iterator[None]:
        """While entered, a weight that no loss uses has a gradient of zeros."""
        self._searching = True
        try:
            yield
        finally:
            self._searching = False

    def _run(self, compute: Callable[[], Any], *, training: bool) -> Any:
        self._calls.compute, self._calls.error = compute, None
        found = self._calls(training=training)
        if self._calls.error is not None:
            raise self._calls.error
        return found

    def term(
        self,
        batch: Batch,
        samples: int,
        tell: Callable[[str, str], object] | None = None,
        division: Division = WHOLE,
    ) -> LossTerm:
        """As ``WholeModel.term``: a loss is a mean over the samples, or (sum, count).

        Where modules of the mirrored model have hooks, it is computed step by step, and these are called with what
        layers compute, and in the backward pass with the gradients of that, in their order."""
        self._mirrored.push()
        given = batch_of(batch)
        if not torch.is_grad_enabled():
            value, count = _parts(self._found(given, training=False))
            return _term(to_torch(value).reshape(()), count)
        trained, is_used = self._mirrored.trained, not self._searching
        variables = [each.variable.value for each in trained]
        with self._looking() as passed, tf.GradientTape() as tape:
            value, count = _parts(self._found(given, training=True, compiled=passed is None))
        for each in self._mirrored.others:
            each.pull()

        def gradients(weight: float) -> list[torch.Tensor | None]:
            scaled = tf.constant(weight, value.dtype, shape=value.shape)
            asked = [*variables, *(each.tensor for each in passed or ())]
            found = [
                None if each is None else to_torch(each)
                for each in tape.gradient(value, asked, output_gradients=scaled)
            ]
            for each, gradient in reversed(list(zip(passed or (), found[len(variables) :], strict=True))):
                if gradient is not None:
                    each.show(gradient)
            own = zip(trained, found[: len(variables)], strict=True)
            return [
                gradient if gradient is not None or is_used else torch.zeros_like(each.tensor) for each, gradient in own
            ]

        loss = _Loss.apply(to_torch(value).reshape(()), gradients, *(each.tensor for each in trained))
        return _term(loss, count)

    @contextmanager
    def _looking(self) -> Iterator[list[Passed] | None]:
        """While entered, hooks see what passes through layers, of which it gives a list; None: there are no hooks."""
        if not self._mirrored.is_hooked:
            yield None
            return
        with self._mirrored.calling() as passed:
            yield passed

    def _found(self, batch: Any, *, training: bool, compiled: bool = False) -> Any:
        # a compiled function has the mode that it was traced in, and calls no hooks
        loss_fn = self._loss_fn if compiled else python_function(self._loss_fn)
        return self._run(lambda: loss_fn(self._mirrored.model, batch), training=training)

    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``."""
        self._mirrored.push()
        given = batch_of(batch)
        return self._run(lambda: call_model(self._mirrored.model, given), training=False)

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``."""
        seen: list[Any] = []
        with torch.no_grad(), self._outputs_seen(seen):
            term = self.term(contents(batch), samples_in(batch))
        return first_output(seen) if outputs else None, term

    @contextmanager
    def _outputs_seen(self, seen: list[Any]) -> Iterator[None]:
        model = self._mirrored.model
        call, own = model.call, vars(model).get("call")

        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(call(*args, **kwargs))
            return seen[-1]

        set_past_keras(model, "call", noted)
        try:
            yield
        finally:
            set_past_keras(model, "call", own)

    @contextmanager
    def evaluation(self) -> Iterator[keras.Model]:
        """As ``Validating.evaluation``: the cell calls the Keras model, whose layers are not in training mode unless
        they are told to be."""
        self._mirrored.push()
        yield self._mirrored.model


class _Loss(torch.autograd.Function):
    """A loss that TensorFlow computed, with ``gradients``: of its weight in the step, by parameter."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, gradients: Callable[[float], Any], *parameters: torch.Tensor) -> Any:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, weight: torch.Tensor) -> Any:
        return None, None, *ctx.gradients(float(weight))


def python_function(function: Any) -> Any:
    """What ``tf.function`` was given, or ``function`` itself."""
    return getattr(function, "python_function", function)


def _parts(found: Any) -> tuple[Any, float | None]:
    """The loss as one number of TensorFlow, and its count. ``ConfigError`` for what is none."""
    total, count = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(total, tf.Tensor) or not total.dtype.is_floating or total.shape.num_elements() != 1:
        told = f"has shape {tuple(total.shape)}" if isinstance(total, tf.Tensor) else f"is a {type(total).__name__}"
        raise ConfigError(
            f"the loss {told}: return one number of TensorFlow, a mean over the samples such as "
            "tf.reduce_mean(...), or (loss_sum, count)",
            field="loss_fn",
        )
    return widened(total), None if count is None else float(count)


def _term(value: torch.Tensor, count: float | None) -> LossTerm:
    return LossTerm(value) if count is None else LossTerm(value, count, "total")

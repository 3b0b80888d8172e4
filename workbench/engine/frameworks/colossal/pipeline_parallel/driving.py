"""Driving Colossal-AI's pipeline schedules where they remember too much.

A schedule caches the shapes of messages between stages, the batch size and the number of micro-batches. A batch of
other shapes, or an evaluation between two training steps, would meet a stale cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from workbench.errors import ConfigError

#: entry of a batch for the schedule that the model does not see
_TARGET = "workbench_target"
_REMEMBERED = (
    "num_microbatches",  # of 1F1B
    "num_microbatch",  # of the interleaved schedule
    "microbatch_size",
    "last_batch_size",
    "enable_metadata_cache",
    "send_tensor_metadata",
    "send_grad_metadata",
    "tensor_metadata_recv",
    "grad_metadata_recv",
)


class NamedBatches:
    """Batches as the schedule wants them: by the names of the model's arguments.

    The schedule calls the model with every entry of a tuple, its target included (_utils.py:123). Here the target is an
    entry that is taken away before the model is called. ``model``: the user's, before it is split. ``lost``: arguments
    that it would not take then.
    """

    def __init__(self, model: torch.nn.Module, lost: Collection[str] = ()) -> None:
        self._model, self._lost = type(model).__name__, lost
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(model.forward).parameters.values()
        self._names = [item.name for item in parameters if item.kind in kinds]
        self._is_tuple = False

    def hide_targets(self, model: torch.nn.Module) -> None:
        """Let ``model``, the wrapper that the schedule calls, leave out targets, and what it has nothing to send of."""
        model.register_forward_pre_hook(_without_target, with_kwargs=True)
        model.register_forward_hook(_only_tensors)

    def named(self, batch: Any) -> dict[str, Any]:
        """``batch`` for the schedule. Raises ``ConfigError`` for inputs that the model does not take."""
        self._is_tuple = isinstance(batch, tuple | list)
        named = dict(batch) if isinstance(batch, Mapping) else self._with_target(batch)
        lost = [name for name in self._lost if named.get(name) is not None]
        if lost:
            raise ConfigError(
                f"a pipeline does not pass {', '.join(lost)} of the batch on in a {self._model}: leave out, or use "
                "--tp, or --plugin ddp, zero1 or zero2",
                field="dataset",
            )
        return named

    def _with_target(self, batch: Any) -> dict[str, Any]:
        inputs = list(batch[:-1]) if self._is_tuple and len(batch) > 1 else [*batch] if self._is_tuple else [batch]
        if len(inputs) > len(self._names):
            raise ConfigError(
                f"the batch has {len(inputs)} inputs before its target, but the model takes {len(self._names)}: give "
                "the dataset's samples as dictionaries",
                field="dataset",
            )
        target = {_TARGET: batch[-1]} if self._is_tuple and len(batch) > 1 else {}
        return {**dict(zip(self._names, inputs, strict=False)), **target}

    def original(self, named: dict[str, Any]) -> Any:
        """A micro-batch of ``named`` as the cell's criterion takes it."""
        if _TARGET in named or self._is_tuple:
            return tuple(named.values())
        return named


def _without_target(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != _TARGET}


def _only_tensors(module: torch.nn.Module, args: Any, outputs: Any) -> Any:
    """Outputs for the next stage are tensors (pipeline/p2p.py:196): what else there is, it takes by default."""
    if type(outputs) is dict:
        return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    return outputs


def forget_shapes_if_new(schedule: Any, batch: Any) -> None:
    """Before a training step: when the shapes differ from those of the step before, drop what was cached of them.

    All stages see the same batch, so all of them decide the same.
    """
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
    if getattr(schedule, "_workbench_shapes", shapes) != shapes:
        _forget(schedule)
        schedule.microbatch_size = None
    schedule._workbench_shapes = shapes


def _forget(schedule: Any) -> None:
    schedule.last_batch_size = None
    schedule.send_tensor_metadata = schedule.send_grad_metadata = True
    schedule.tensor_metadata_recv = schedule.grad_metadata_recv = None


@contextmanager
def _own_memory(schedule: Any) -> Iterator[None]:
    before = {name: getattr(schedule, name) for name in _REMEMBERED if hasattr(schedule, name)}
    _forget(schedule)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(schedule, name, value)


def forward_only(schedule: Any, model: torch.nn.Module, batch: Any) -> Any:
    """Outputs for ``batch`` on the last stage, None on the others. Collective over the stages; call under no_grad.

    What the schedule returns has lost its scalars, the loss among them, so the outputs are taken where it computes one.
    """
    sample = next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
    seen: list[Any] = []

    def take(outputs: Any, micro_batch: Any) -> torch.Tensor:
        seen.append(outputs)
        return torch.zeros((), device=sample.device)

    with _own_memory(schedule):
        schedule.enable_metadata_cache = False
        schedule.microbatch_size = sample.shape[0]
        if schedule.stage_manager.is_interleave:
            _through_chunks(schedule, model, batch, take)
        else:
            schedule.num_microbatches = 1
            schedule.forward_backward_step(model, iter([batch]), take)
    return seen[0] if seen else None


def _through_chunks(schedule: Any, model: torch.nn.Module, batch: Any, take: Callable[..., torch.Tensor]) -> None:
    """One batch through all parts of the model, one after the other: the interleaved schedule itself can only send as
    many as there are stages at a time."""
    schedule.num_microbatch, schedule.forward_only = 1, True
    schedule.load_batch(iter([batch]))
    for chunk in range(schedule.num_model_chunks):
        received, arrived = schedule.recv_forward(chunk)
        _wait(arrived)
        _wait(schedule.send_forward(chunk, schedule.forward_step(model, chunk, received, take)))


def _wait(handles: Iterable[Any] | None) -> None:
    for handle in handles or ():
        handle.wait()

"""Megatron-Core on ranks without a GPU, and with one random generator: every change that is made to it.

It names CUDA in some fifty modules (``torch.cuda.current_device()``, ``device="cuda"``, ``"torch.cuda.FloatTensor"``).
The compiled code of its functions is given the names of the processor in their place: ``torch.cpu`` has the functions
that are called, and its sources stay as they are.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import CodeType, FunctionType
from typing import Any

import torch

_PACKAGE = "megatron.core"
_CUDA, _CPU = "cuda", "cpu"
#: what ``Tensor.type()`` gives on processors has no name of a device
_TYPE, _CPU_TYPE = "torch.cuda.", "torch."


@contextmanager
def uncompiled() -> Iterator[None]:
    """While Megatron is imported: it would have ``torch.compile`` compile small functions when they are first called,
    which takes a rank minutes, and a compiler."""
    before = torch.compile
    torch.compile = lambda function, *_, **__: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = before


@functools.cache
def on_processors() -> None:
    """Let the parts of Megatron-Core that are imported compute on processors. Once in a process."""
    for module in [found for name, found in sys.modules.items() if f"{name}.".startswith(f"{_PACKAGE}.")]:
        for function in _functions(module.__dict__, module.__name__):
            function.__code__ = _renamed(function.__code__)


@functools.cache
def with_one_generator() -> None:
    """Let dropout draw from the rank's default generator, where no other was added for parallel tensors: its state is
    in checkpoints, and each rank has its own."""
    from megatron.core.tensor_parallel import random

    upstream = random.CudaRNGStatesTracker.fork

    def fork(self: Any, name: str = random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Any:
        return upstream(self, name) if name in self.states_ else nullcontext()

    random.CudaRNGStatesTracker.fork = fork


def _functions(names: dict[str, Any], module: str) -> Iterator[FunctionType]:
    """The functions and methods that a module of Megatron defines, decorated ones too."""
    for found in list(names.values()):
        if isinstance(found, type):
            if found.__module__ == module:
                yield from _functions(dict(found.__dict__), module)
            continue
        for function in (found.fget, found.fset) if isinstance(found, property) else (found,):
            yield from _within(function, module)


def _within(function: Any, module: str) -> Iterator[FunctionType]:
    """A function, and what decorators have put into it."""
    if isinstance(function, FunctionType) and function.__module__ == module:
        yield function
    inner = getattr(function, "__wrapped__", None) or getattr(function, "__func__", None)
    if inner is not None:
        yield from _within(inner, module)


def _renamed(code: CodeType) -> CodeType:
    """The same code with the processor in the place of CUDA."""
    names = tuple(_CPU if name == _CUDA else name for name in code.co_names)
    return code.replace(co_names=names, co_consts=tuple(_constant(each) for each in code.co_consts))


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _renamed(value)
    if isinstance(value, tuple):
        return tuple(_constant(each) for each in value)
    if not isinstance(value, str):
        return value
    return _CPU if value == _CUDA else value.replace(_TYPE, _CPU_TYPE) if value.startswith(_TYPE) else value

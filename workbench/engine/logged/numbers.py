"""Sums up the numbers of one step by name, where they are: a tensor on a device stays there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

#: how values of one name are combined; None, as one curve per rank, is "none"
REDUCTIONS = ("mean", "sum", "max", "min", "none")


def plain_number(value: Any) -> Any:
    """``value`` as a float, or as a scalar of its own on its device. ``TypeError`` or ``ValueError`` when it is no
    number."""
    if isinstance(value, torch.Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise TypeError(_not_one(f"an array of shape {value.shape} and type {value.dtype}"))
        return float(value.reshape(()))
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        raise TypeError(_not_one(f"a {type(value).__name__}"))
    return float(value)


def _of_tensor(value: torch.Tensor) -> Any:
    if hasattr(value, "full_tensor"):
        raise TypeError("a DTensor, of which each rank has a part: log value.full_tensor(), which all ranks must call")
    if value.numel() != 1 or value.is_complex() or value.is_meta:
        raise TypeError(_not_one(f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"))
    value = value.detach().reshape(())
    if value.device.type == "cpu":
        return float(value)
    wide = torch.float32 if value.device.type == "mps" else torch.float64
    return value.to(wide, copy=True)


def _not_one(what: str) -> str:
    return f"{what} is not a single real number: log one, such as value.mean(), or use log.image or log.text"


class Running:
    """The calls of one name in one step: ``total`` is their sum, largest or smallest, ``count`` how many there were."""

    __slots__ = ("count", "reduce", "total")

    def __init__(self, reduce: str, value: Any) -> None:
        self.reduce, self.total, self.count = reduce, value, 1

    def add(self, value: Any) -> None:
        """Take one more; NaN stays NaN."""
        self.count += 1
        if self.reduce not in ("max", "min"):
            self.total = self.total + value
        elif isinstance(value, torch.Tensor) or isinstance(self.total, torch.Tensor):
            either = [torch.as_tensor(number) for number in (self.total, value)]
            device = max(either, key=lambda number: number.device.type != "cpu").device
            function = torch.maximum if self.reduce == "max" else torch.minimum
            self.total = function(*(number.to(device, torch.float64) for number in either))
        elif math.isnan(value) or (value > self.total if self.reduce == "max" else value < self.total):
            self.total = value

    def value_of(self, total: float) -> float:
        """What the record says, of ``total`` on the host."""
        return total / self.count if self.reduce in ("mean", "none") else total


class OnTheWay:
    """Numbers of a step that may still be on their way to the host; asking for them before ``is_here`` waits."""

    def __init__(self, numbers: Sequence[Any]) -> None:
        self._numbers = list(numbers)
        self._places = [place for place, number in enumerate(numbers) if isinstance(number, torch.Tensor)]
        self._read: torch.Tensor | None = None
        self._copied: Any = None
        if self._places:
            tensors = [self._numbers[place] for place in self._places]
            stacked = torch.stack([tensor.to(tensors[0].device) for tensor in tensors])
            self._read = stacked
            if stacked.is_cuda:
                self._read = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
                self._read.copy_(stacked, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record()

    @property
    def is_here(self) -> bool:
        """Whether ``read`` does not wait."""
        return self._copied is None or bool(self._copied.query())

    def read(self) -> list[float]:
        """The numbers, in order."""
        if self._copied is not None:
            self._copied.synchronize()
        if self._read is not None:
            for place, number in zip(self._places, self._read.tolist(), strict=True):
                self._numbers[place] = number
        return self._numbers

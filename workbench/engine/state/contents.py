"""Whether the contents of an object have changed: a fingerprint that takes milliseconds, also of large containers."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

#: elements that are looked at: of one container at each end, and in all
_AT_EACH_END, _IN_ALL = 100, 10_000
_OF_ARRAY = 1 << 13


def fingerprint(value: Any) -> Hashable:
    """Return what is equal again as long as ``value`` is not changed, by assignment or in place.

    Of long containers, and of large arrays, both ends are looked at; objects by their attributes. What lies deeper
    than 10,000 elements, and what has neither elements nor attributes, counts by its identity.
    """
    return _Look().of(value)


class _Look:
    def __init__(self) -> None:
        self._left = _IN_ALL
        self._above: set[int] = set()  # containers that hold the one that is looked at

    def of(self, value: Any) -> Hashable:
        self._left -= 1
        if value is None or isinstance(value, _PLAIN):
            return (type(value).__name__, repr(value) if isinstance(value, _NUMBERS) else value)
        if self._left < 0 or id(value) in self._above:
            return id(value)
        self._above.add(id(value))
        try:
            look = next((look for kinds, look in _LOOKS if isinstance(value, kinds)), _Look._object)
            return look(self, value)
        finally:
            self._above.discard(id(value))

    def _tensor(self, value: torch.Tensor) -> Hashable:
        return (id(value), None if value.is_inference() else value._version)

    def _array(self, value: np.ndarray) -> Hashable:
        flat = value.reshape(-1)
        ends = [] if value.dtype.hasobject else [flat[:_OF_ARRAY], flat[-_OF_ARRAY:]]
        return (id(value), value.shape, *(zlib.crc32(np.ascontiguousarray(end).tobytes()) for end in ends))

    def _mapping(self, value: Mapping[Any, Any]) -> Hashable:
        return (len(value), *((self.of(key), self.of(part)) for key, part in _ends(value.items())))

    def _set(self, value: set[Any] | frozenset[Any]) -> Hashable:
        return (len(value), hash(frozenset(value)))

    def _sequence(self, value: Sequence[Any]) -> Hashable:
        return (len(value), *map(self.of, _ends(value)))

    def _object(self, value: Any) -> Hashable:
        has_attributes = hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value)
        return (id(value), self._mapping(vars(value)) if has_attributes else None)


_NUMBERS = (float, complex, np.generic)  # compared as text: one that is not a number is unlike itself
_PLAIN = (bool, int, str, bytes, *_NUMBERS)
_LOOKS: tuple[tuple[Any, Callable[[_Look, Any], Hashable]], ...] = (
    (torch.Tensor, _Look._tensor),
    (np.ndarray, _Look._array),
    (Mapping, _Look._mapping),
    (set | frozenset, _Look._set),
    (list | tuple | deque, _Look._sequence),
)


def _ends(values: Any) -> list[Any]:
    """The first and the last elements; of what has no order from behind, the first."""
    first = list(islice(values, _AT_EACH_END))
    if len(values) <= _AT_EACH_END or not hasattr(values, "__reversed__"):
        return first
    return [*first, *islice(reversed(values), min(_AT_EACH_END, len(values) - _AT_EACH_END))]

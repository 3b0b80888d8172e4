"""Random generators that a cell makes itself: a ``torch.Generator``, NumPy's, or a ``random.Random``."""

from __future__ import annotations

import collections
import functools
import gc
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand

from workbench.core.user_code.user_modules import is_users

#: objects that are looked at, and elements of one container
_MOST, _MOST_ELEMENTS = 20_000, 256
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)
_WITHOUT_PARTS = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    torch.Tensor,
    np.ndarray,
    ModuleType,
    CodeType,
    BuiltinFunctionType,
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How generators of a type are read, put into a state, and seeded with a number of 64 bits."""

    get: Callable[[Any], Any]
    set: Callable[[Any, Any], object]
    seed: Callable[[Any, int], object]


def _set_bits(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


def _seed_bits(generator: np.random.Generator, number: int) -> None:
    bits: Any = type(generator.bit_generator)
    generator.bit_generator.state = bits(number).state


def _seed_random_state(generator: np.random.RandomState, number: int) -> None:
    bits = getattr(np.random, generator.get_state(legacy=False)["bit_generator"])  # type: ignore[call-overload,index]
    generator.set_state(np.random.RandomState(bits(number)).get_state(legacy=False))


_KINDS: dict[type, _Kind] = {
    torch.Generator: _Kind(
        lambda generator: generator.get_state(),
        lambda generator, state: generator.set_state(state),
        lambda generator, number: generator.manual_seed(number),
    ),
    np.random.Generator: _Kind(lambda generator: generator.bit_generator.state, _set_bits, _seed_bits),
    np.random.RandomState: _Kind(
        lambda generator: generator.get_state(legacy=False),
        lambda generator, state: generator.set_state(state),
        _seed_random_state,
    ),
    random.Random: _Kind(
        lambda generator: generator.getstate(),
        lambda generator, state: generator.setstate((state[0], tuple(state[1]), state[2])),  # JSON has no tuples
        lambda generator, number: generator.seed(number),
    ),
}


#: key of an array's type in the text of a state
_DTYPE = "__dtype__"


def _with_array(value: dict[str, Any]) -> Any:
    return np.array(value["values"], value[_DTYPE]) if _DTYPE in value else value


class OwnGenerator:
    """A random generator of the cell's own; also a ``ModuleGenerator``. ``is_shared``: data are drawn from it too, in a
    stream of their own, so it begins with other numbers. ``is_alike``: it draws the same on all ranks."""

    def __init__(self, generator: Any, *, is_shared: bool = False) -> None:
        self.generator = generator
        self._kind = next(kind for base, kind in _KINDS.items() if isinstance(generator, base))
        self._is_shared = is_shared
        self.is_alike = False
        digest = hashlib.blake2b(bytes(self.states()[""].numpy()), digest_size=8).digest()
        #: a number for the state that the cell left it in, so that its seed matters wherever it begins anew
        self.number = int.from_bytes(digest, "little")

    def get(self) -> Any:
        """The generator's state."""
        return self._kind.get(self.generator)

    def set(self, state: Any) -> None:
        """Restore a state that ``get`` returned."""
        self._kind.set(self.generator, state)

    def seed(self, number: int) -> None:
        """Begin anew with a number of 64 bits."""
        self._kind.seed(self.generator, number)

    def states(self) -> dict[str, torch.Tensor]:
        """As ``ModuleGenerator.states``."""
        state = self.get()
        if not isinstance(state, torch.Tensor):
            text = json.dumps(state, default=lambda array: {_DTYPE: array.dtype.name, "values": array.tolist()})
            state = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        return {"": state}

    def restore(self, states: Mapping[str, torch.Tensor]) -> None:
        """Undo ``states``."""
        state = states[""]
        is_tensor = isinstance(self.generator, torch.Generator)
        self.set(state if is_tensor else json.loads(bytes(state.numpy()), object_hook=_with_array))

    def reseed(self, offset: int) -> None:
        """As ``ModuleGenerator.reseed``; 0 leaves it where it is, unless it is shared. One that is alike stays too."""
        if (offset or self._is_shared) and not self.is_alike:
            self.seed((self.number + offset) % 2**64)


def own_generators(*roots: Any, without: Iterable[Any] = (), shared: Iterable[Any] = ()) -> list[OwnGenerator]:
    """The generators that ``roots`` hold: in attributes and elements, in what functions of the cell and of modules of
    the user name, and in what those hold. Those of the process, and those that ``without`` holds, are left out;
    ``shared`` are roots that use them too."""
    found = _found(roots)
    others = {id(generator) for generator in _found(without)} if found else set()
    also = {id(generator) for generator in _found(shared)} if found else set()
    return [OwnGenerator(each, is_shared=id(each) in also) for each in found if id(each) not in others]


def _found(roots: Iterable[Any]) -> list[Any]:
    is_own = functools.cache(is_users)
    of_process = {id(each) for each in (torch.default_generator, random.random.__self__, mtrand.rand.__self__)}  # type: ignore[attr-defined]
    of_process |= {id(each) for each in torch.cuda.default_generators}
    waiting, found = collections.deque(roots), []
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        value = waiting.popleft()
        if isinstance(value, _WITHOUT_PARTS) or id(value) in seen or id(value) in of_process:
            continue
        if isinstance(value, _CONTAINERS) and not value:
            continue
        seen.add(id(value))
        if isinstance(value, tuple(_KINDS)) and not isinstance(value, random.SystemRandom):
            found.append(value)
        else:
            waiting.extend(_parts(value, is_own))
    return found


def _parts(value: Any, is_own: Callable[[str], bool]) -> Iterable[Any]:
    """What an object holds."""
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, FunctionType):
        return _parts_of_function(value, is_own)
    if isinstance(value, type):
        return [part for base in value.__mro__ if is_own(base.__module__) for part in vars(base).values()]
    if isinstance(value, dict):
        return list(islice(value.values(), _MOST_ELEMENTS))
    if type(value) in _CONTAINERS:
        return list(islice(value, _MOST_ELEMENTS))
    return gc.get_referents(value)  # also of slots, partial functions, running generators


def _parts_of_function(function: FunctionType, is_own: Callable[[str], bool]) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        yield from gc.get_referents(cell)  # nothing, where it is empty
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield getattr(function, "__wrapped__", None)
    if is_own(function.__module__ or ""):
        names = _names(function.__code__)
        yield from (function.__globals__[name] for name in names if name in function.__globals__)


def _names(code: CodeType) -> list[str]:
    """Names that a function uses, and functions in it."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return [*code.co_names, *inner]

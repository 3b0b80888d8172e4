"""Saves and loads a batch together with the state of the rank's random generators, so that a step can be replayed.

Nothing is pickled: tensors are stored as safetensors, the nesting of the batch as JSON. Containers and other objects
keep their class, which the replay finds where the cell found it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from workbench.engine.base.batch import Batch, Piece
from workbench.engine.state.plain_objects import NoPlainObjectError, ObjectParts, made_of, name_of, named, parts_of
from workbench.engine.state.randomness import RandomState
from workbench.errors import RunDirectoryError

BATCH_FILE, TREE_FILE = "batch.safetensors", "batch.json"
RANDOM_FILE, RANDOM_NUMBERS_FILE = "random.safetensors", "random.json"

#: bytes; what vector instructions of CPUs tell apart
_ALIGNMENT = 64
_PLAIN = (type(None), bool, int, float, str)
_SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Save ``tensors`` as safetensors; tensors that share memory are copied.

    Raises ``OSError`` on a full disk, and ``TypeError`` for numbers that the format does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype == torch.complex128 or tensor.is_quantized:
            raise TypeError(f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}, which cannot be saved")
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(whole, file)


def save_batch_snapshot(directory: Path, batch: Batch, random: RandomState) -> None:
    """Save a batch, or a piece of one, and the states of the random generators in ``directory``.

    Raises ``OSError`` when a file cannot be written, and ``TypeError``, with the place in the batch and the reason, for
    what cannot be made again.
    """
    flat: dict[str, torch.Tensor] = {}
    tree = _Flattening(flat).tree(batch, "batch")
    save_tensors(flat, directory / BATCH_FILE)
    (directory / TREE_FILE).write_text(json.dumps(tree), encoding="utf-8")
    save_tensors(random.tensors, directory / RANDOM_FILE)
    (directory / RANDOM_NUMBERS_FILE).write_text(json.dumps(random.plain()), encoding="utf-8")


def load_batch_snapshot(directory: Path, cell: Mapping[str, Any]) -> tuple[Batch, RandomState]:
    """Load the batch and the random state that ``save_batch_snapshot`` saved.

    ``cell``: the names that the run's cell defines and uses. Raises ``RunDirectoryError`` when a class is not there any
    more.
    """
    tree = json.loads((directory / TREE_FILE).read_text(encoding="utf-8"))
    numbers = json.loads((directory / RANDOM_NUMBERS_FILE).read_text(encoding="utf-8"))
    random = RandomState.from_plain(load_file(directory / RANDOM_FILE), numbers)
    try:
        return _Restoring(load_file(directory / BATCH_FILE), cell).value(tree), random
    except LookupError as error:
        raise RunDirectoryError(
            f"the batch of {directory} cannot be made again without {error.args[0]}: was the code changed since?"
        ) from error


class _Flattening:
    """Takes a batch apart into JSON types and tensors, which go into ``flat``."""

    def __init__(self, flat: dict[str, torch.Tensor]) -> None:
        self._flat = flat
        self._above: set[int] = set()  # objects that are being taken apart

    def tree(self, value: Any, place: str) -> dict[str, Any]:
        if isinstance(value, torch.Tensor):
            return {"tensor": self._kept(value, place), "at": value.data_ptr() % _ALIGNMENT}
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            array = np.asarray(value).astype(value.dtype.newbyteorder("="), copy=False)
            kind = "array" if isinstance(value, np.ndarray) else "number"
            return {kind: self._kept(torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape), place)}
        if type(value) in _PLAIN:
            return {"value": value}
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, type | FunctionType):
            return {"named": self._named(value, place)}
        if id(value) in self._above:
            raise TypeError(f"{place} is part of itself, which cannot be saved")
        self._above.add(id(value))
        try:
            return self._container(value, place)
        finally:
            self._above.discard(id(value))

    def _container(self, value: Any, place: str) -> dict[str, Any]:
        if isinstance(value, Piece):
            return {"piece": [self.tree(value.batch, place), value.samples, value.layout]}
        if isinstance(value, np.ndarray):
            texts = [self.tree(entry, f"{place}[...]") for entry in value.ravel().tolist()]
            return {"objects": [value.dtype.str, value.shape, texts]}
        if type(value) is dict:
            return {"mapping": self._pairs(value.items(), place)}
        if type(value) in _SEQUENCES.values():
            return {type(value).__name__: [self.tree(item, f"{place}[{index}]") for index, item in enumerate(value)]}
        try:
            parts = parts_of(value)
        except NoPlainObjectError as error:
            raise TypeError(f"{place} is {error}, so that it cannot be saved") from error
        if isinstance(parts, str):
            return {"named": parts}
        return {
            "object": self._named(parts.kind, place),
            "new": parts.is_new,
            "arguments": [self.tree(entry, place) for entry in parts.arguments],
            "state": self._state(parts.state, place),
            "items": [self.tree(entry, f"{place}[{index}]") for index, entry in enumerate(parts.items)],
            "pairs": self._pairs(parts.pairs, place),
        }

    def _state(self, state: Any, place: str) -> dict[str, Any]:
        if type(state) is dict and all(isinstance(name, str) for name in state):
            return {
                "mapping": [[{"value": name}, self.tree(entry, f"{place}.{name}")] for name, entry in state.items()]
            }
        return self.tree(state, place)

    def _pairs(self, pairs: Any, place: str) -> list[Any]:
        return [[self.tree(key, f"a key of {place}"), self.tree(entry, f"{place}[{key!r}]")] for key, entry in pairs]

    def _kept(self, tensor: torch.Tensor, place: str) -> str:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(f"{place} is a {type(tensor).__name__}, a tensor of a class of its own, which is not saved")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.dtype == torch.complex128:
            kind = (
                "nested" if tensor.is_nested else str(tensor.layout if tensor.layout != torch.strided else tensor.dtype)
            )
            raise TypeError(f"{place} is a {kind.removeprefix('torch.')} tensor, which cannot be saved")
        name = f"tensor-{len(self._flat)}"
        self._flat[name] = tensor
        return name

    @staticmethod
    def _named(value: Any, place: str) -> str:
        try:
            return name_of(value)
        except NoPlainObjectError as error:
            raise TypeError(f"{place} needs {error}, so that it cannot be saved") from error


def _placed(tensor: torch.Tensor, at: int) -> torch.Tensor:
    """A copy that begins in memory ``at`` bytes after a multiple of ``_ALIGNMENT``: the last bit of a product of
    matrices may depend on it."""
    room = torch.empty(tensor.numel() + _ALIGNMENT // tensor.element_size(), dtype=tensor.dtype)
    first = (at - room.data_ptr()) % _ALIGNMENT // tensor.element_size()
    return room[first : first + tensor.numel()].view(tensor.shape).copy_(tensor)


class _Restoring:
    """Undoes ``_Flattening``."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], cell: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._cell = cell

    def value(self, tree: dict[str, Any]) -> Any:
        if "object" in tree:
            return self._object(tree)
        kind, inner = next(iter(tree.items()))
        if kind in _SEQUENCES:
            return _SEQUENCES[kind]([self.value(item) for item in inner])
        makers: dict[str, Callable[[Any], Any]] = {
            "value": lambda value: value,
            "tensor": lambda name: _placed(self._tensors[name], tree.get("at", 0)),
            "array": lambda name: self._tensors[name].numpy(),
            "number": lambda name: self._tensors[name].numpy()[()],
            "bytes": bytes.fromhex,
            "named": lambda name: named(name, self._cell),
            "piece": lambda piece: Piece(self.value(piece[0]), *piece[1:]),
            "objects": lambda array: self._array(*array),
            "mapping": lambda pairs: dict(self._pairs(pairs)),
        }
        return makers[kind](inner)

    def _object(self, tree: dict[str, Any]) -> Any:
        parts = ObjectParts(
            kind=named(tree["object"], self._cell),
            arguments=tuple(self.value(entry) for entry in tree["arguments"]),
            is_new=tree["new"],
            state=self.value(tree["state"]),
            items=[self.value(entry) for entry in tree["items"]],
            pairs=self._pairs(tree["pairs"]),
        )
        return made_of(parts)

    def _pairs(self, pairs: list[Any]) -> list[tuple[Any, Any]]:
        return [(self.value(key), self.value(entry)) for key, entry in pairs]

    def _array(self, dtype: str, shape: list[int], entries: list[Any]) -> Any:
        array = np.empty(len(entries), dtype=dtype)
        for index, entry in enumerate(entries):
            array[index] = self.value(entry)
        return array.reshape(shape)

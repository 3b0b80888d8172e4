"""A moment that can be gone back to: a batch and the state of every random generator of the rank, as plain files.

Nothing here is pickled: tensors are safetensors, the shape of what holds them is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workbench.engine.state.randomness import RandomState

BATCH_FILE, TREE_FILE = "batch.safetensors", "batch.json"
RANDOM_FILE, NUMBERS_FILE = "random.safetensors", "random.json"


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """``tensors`` as safetensors, each with memory of its own. ``OSError`` when the disk takes no more."""
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(whole, file)


def save_moment(directory: Path, batch: Any, random: RandomState) -> None:
    """Write a batch and the states of the generators. ``OSError``; ``TypeError`` for a batch that holds an object
    other than tensors, numbers and texts in mappings, lists and tuples."""
    flat: dict[str, torch.Tensor] = {}
    tree = _to_tree(batch, flat)
    save_tensors(flat, directory / BATCH_FILE)
    (directory / TREE_FILE).write_text(json.dumps(tree), encoding="utf-8")
    save_tensors(random.tensors, directory / RANDOM_FILE)
    (directory / NUMBERS_FILE).write_text(json.dumps(random.plain()), encoding="utf-8")


def load_moment(directory: Path) -> tuple[Any, RandomState]:
    """What ``save_moment`` wrote."""
    tree = json.loads((directory / TREE_FILE).read_text(encoding="utf-8"))
    numbers = json.loads((directory / NUMBERS_FILE).read_text(encoding="utf-8"))
    random = RandomState.from_plain(load_file(directory / RANDOM_FILE), numbers)
    return _from_tree(tree, load_file(directory / BATCH_FILE)), random


def _to_tree(value: Any, flat: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"tensor-{len(flat)}"
        flat[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[_to_tree(key, flat), _to_tree(item, flat)] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_to_tree(item, flat) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"the batch holds a {type(value).__name__}, which has no form in a file")


def _from_tree(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, inner),) = tree.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "mapping":
            return {_from_tree(key, tensors): _from_tree(item, tensors) for key, item in inner}
        case "tuple":
            return tuple(_from_tree(item, tensors) for item in inner)
        case "list":
            return [_from_tree(item, tensors) for item in inner]
        case _:
            return inner

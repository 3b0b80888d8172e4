"""Saves and loads a batch together with the state of the rank's random generators, so that a step can be replayed.

Nothing is pickled: tensors are stored as safetensors, the nesting of the batch as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from workbench.engine.base.batch import contents
from workbench.engine.state.randomness import RandomState

BATCH_FILE, TREE_FILE = "batch.safetensors", "batch.json"
RANDOM_FILE, RANDOM_NUMBERS_FILE = "random.safetensors", "random.json"


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Save ``tensors`` as safetensors; tensors that share memory are copied. Raises ``OSError`` on a full disk."""
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(whole, file)


def save_batch_snapshot(directory: Path, batch: Any, random: RandomState) -> None:
    """Save a batch and the states of the random generators in ``directory``.

    Raises ``OSError`` when a file cannot be written, and ``TypeError`` when the batch holds anything but tensors,
    arrays of numbers, numbers and texts in mappings (loaded as dicts), lists and tuples.
    """
    flat: dict[str, torch.Tensor] = {}
    tree = _flatten(contents(batch), flat)
    save_tensors(flat, directory / BATCH_FILE)
    (directory / TREE_FILE).write_text(json.dumps(tree), encoding="utf-8")
    save_tensors(random.tensors, directory / RANDOM_FILE)
    (directory / RANDOM_NUMBERS_FILE).write_text(json.dumps(random.plain()), encoding="utf-8")


def load_batch_snapshot(directory: Path) -> tuple[Any, RandomState]:
    """Load the batch and the random state that ``save_batch_snapshot`` saved."""
    tree = json.loads((directory / TREE_FILE).read_text(encoding="utf-8"))
    numbers = json.loads((directory / RANDOM_NUMBERS_FILE).read_text(encoding="utf-8"))
    random = RandomState.from_plain(load_file(directory / RANDOM_FILE), numbers)
    return _unflatten(tree, load_file(directory / BATCH_FILE)), random


def _flatten(value: Any, flat: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"tensor-{len(flat)}"
        flat[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        name = f"tensor-{len(flat)}"
        flat[name] = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
        return {"array": name}
    if isinstance(value, Mapping):
        return {"mapping": [[_flatten(key, flat), _flatten(item, flat)] for key, item in value.items()]}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(item, flat) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"the batch holds a {type(value).__name__}, which cannot be saved")


def _unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, inner),) = tree.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "array":
            return tensors[inner].numpy()
        case "mapping":
            return {_unflatten(key, tensors): _unflatten(item, tensors) for key, item in inner}
        case "tuple":
            return tuple(_unflatten(item, tensors) for item in inner)
        case "list":
            return [_unflatten(item, tensors) for item in inner]
        case _:
            return inner

"""A moment that can be gone back to: every random generator of the rank, and a batch as plain files.

Nothing here is pickled: tensors are safetensors, the shape of what holds them is JSON.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

BATCH_FILE, TREE_FILE, RANDOM_FILE = "batch.safetensors", "batch.json", "random.safetensors"


class Randomness:
    """The generators that a forward pass may draw from: torch's, the GPU's, NumPy's, Python's, and those that
    Colossal-AI keeps in the dropout modules of a tensor-parallel model."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._randomizers: dict[str, Any] = {
            name: part.randomizer
            for name, part in module.named_modules()
            if hasattr(getattr(part, "randomizer", None), "device_rng_state")
        }

    def now(self) -> dict[str, torch.Tensor]:
        """States by name; below 0.2 ms, so that it can be asked at every step."""
        python = random.getstate()
        kind, keys, position, has_gauss, gauss = np.random.get_state()
        assert kind == "MT19937"
        states = {
            "torch": torch.get_rng_state(),
            "python": torch.from_numpy(np.array(python[1], dtype=np.int64)),
            "python/gauss": torch.tensor([] if python[2] is None else [python[2]], dtype=torch.float64),
            "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "numpy/gauss": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        }
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        for name, one in self._randomizers.items():  # each draw puts a new tensor there
            states[f"module/{name}"] = one.device_rng_state
            states[f"module/{name}/cpu"] = one.cpu_rng_state
        return states

    def restore(self, states: Mapping[str, torch.Tensor]) -> None:
        """Go back to ``states``."""
        gauss = states["python/gauss"].tolist()
        random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
        position, has_gauss, value = states["numpy/gauss"].tolist()
        keys = states["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, int(position), int(has_gauss), value))
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
        torch.set_rng_state(states["torch"])
        for name, one in self._randomizers.items():
            one.device_rng_state = states[f"module/{name}"]
            one.cpu_rng_state = states[f"module/{name}/cpu"]


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """``tensors`` as safetensors, each with memory of its own. ``OSError`` when the disk takes no more."""
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(whole, file)


def save_moment(directory: Path, batch: Any, states: Mapping[str, torch.Tensor]) -> None:
    """Write a batch and the states of the generators. ``OSError``; ``TypeError`` for a batch that holds an object
    other than tensors, numbers and texts in mappings, lists and tuples."""
    flat: dict[str, torch.Tensor] = {}
    tree = _to_tree(batch, flat)
    save_tensors(flat, directory / BATCH_FILE)
    (directory / TREE_FILE).write_text(json.dumps(tree), encoding="utf-8")
    save_tensors(states, directory / RANDOM_FILE)


def load_moment(directory: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """What ``save_moment`` wrote: (batch, states)."""
    tree = json.loads((directory / TREE_FILE).read_text(encoding="utf-8"))
    return _from_tree(tree, load_file(directory / BATCH_FILE)), load_file(directory / RANDOM_FILE)


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

"""The random generators of a rank: torch, its GPU, Python, NumPy, and those that Colossal-AI keeps in modules."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.engine.state.plain_state import from_plain, to_plain


@dataclass(frozen=True, slots=True)
class RandomState:
    """States of all generators, as the generators give them: taken at every step and hardly ever looked at.

    ``tensors``: those that are bytes, uint8 vectors by name. ``python``, ``numpy``: those that are numbers.
    """

    tensors: Mapping[str, torch.Tensor]
    python: Any
    numpy: Any

    def plain(self) -> dict[str, Any]:
        """The numbers, as JSON knows them; ``tensors`` beside them is the rest."""
        return {"python": to_plain(self.python), "numpy": to_plain(self.numpy)}

    @classmethod
    def from_plain(cls, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> RandomState:
        """Undo ``plain``."""
        return cls(tensors, from_plain(numbers["python"]), from_plain(numbers["numpy"]))


def randomizers_of(model: torch.nn.Module) -> dict[str, Any]:
    """Colossal-AI's generators inside modules (dropout under tensor parallelism), by module and attribute."""
    return {
        f"{module_name}.{name}": value
        for module_name, module in model.named_modules()
        for name, value in vars(module).items()
        if hasattr(value, "device_rng_state")
    }


class Randomness:
    """Takes and restores states. ``randomizers``: as ``randomizers_of`` found them."""

    def __init__(self, randomizers: Mapping[str, Any]) -> None:
        self._randomizers = randomizers

    def now(self) -> RandomState:
        """The states of now: some 35 us on a CPU."""
        tensors = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        for name, randomizer in self._randomizers.items():  # each draw puts a new tensor there
            tensors[f"{name}/device"] = randomizer.device_rng_state
            tensors[f"{name}/cpu"] = randomizer.cpu_rng_state
        return RandomState(tensors, random.getstate(), np.random.get_state())

    def restore(self, state: RandomState) -> None:
        """Set every generator that there is a state for."""
        tensors = state.tensors
        for name, randomizer in self._randomizers.items():
            if f"{name}/device" in tensors:
                randomizer.device_rng_state = tensors[f"{name}/device"]
                randomizer.cpu_rng_state = tensors[f"{name}/cpu"]
        random.setstate(state.python)
        np.random.set_state(state.numpy)
        if "cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda"])
        torch.set_rng_state(tensors["torch"])

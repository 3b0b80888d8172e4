"""Captures and restores the random generators of a rank: torch on CPU and GPU, Python, NumPy, and those in modules."""

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
    """States of all generators, in the form in which the generators return them, as one is captured at every step.

    ``tensors``: states that are uint8 vectors, by name. ``python``, ``numpy``: states of these libraries' generators.
    """

    tensors: Mapping[str, torch.Tensor]
    python: Any
    numpy: Any

    def plain(self) -> dict[str, Any]:
        """The states of Python's and NumPy's generators as JSON types. ``tensors`` is stored separately."""
        return {"python": to_plain(self.python), "numpy": to_plain(self.numpy)}

    @classmethod
    def from_plain(cls, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> RandomState:
        """Make a state from ``tensors`` and the result of ``plain``."""
        return cls(tensors, from_plain(numbers["python"]), from_plain(numbers["numpy"]))


def randomizers_of(model: torch.nn.Module) -> dict[str, Any]:
    """Find Colossal-AI's random generators in modules (dropout under tensor parallelism), by module and attribute."""
    return {
        f"{module_name}.{name}": value
        for module_name, module in model.named_modules()
        for name, value in vars(module).items()
        if hasattr(value, "device_rng_state")
    }


class RandomGenerators:
    """All random generators of the rank. ``randomizers``: the result of ``randomizers_of``."""

    def __init__(self, randomizers: Mapping[str, Any]) -> None:
        self._randomizers = randomizers

    def capture(self) -> RandomState:
        """Capture the current states; takes about 35 us on a CPU."""
        tensors = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        for name, randomizer in self._randomizers.items():  # each draw replaces the tensor, so no copy is needed
            tensors[f"{name}/device"] = randomizer.device_rng_state
            tensors[f"{name}/cpu"] = randomizer.cpu_rng_state
        return RandomState(tensors, random.getstate(), np.random.get_state())

    def restore(self, state: RandomState) -> None:
        """Restore every generator for which ``state`` has a state."""
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

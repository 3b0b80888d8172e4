"""Captures and restores the random generators of a rank: torch on CPU and GPU, Python, NumPy, and those in modules."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from workbench.engine.base.capabilities import Replayable
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.strategy import Strategy
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


#: far apart, so that no rank's seed is that of another rank of a run with a seed nearby
_SEED_STRIDE = 1_000_003


def separate_generators(strategy: Strategy, own: Mapping[str, ModuleGenerator]) -> None:
    """Give each replica, and each stage of a pipeline, random numbers of its own for model and loss.

    ``own``: generators of the cell's own that these draw from. Called when all ranks have the same weights. The first
    replica's generators go on as they are, so one rank draws what one process draws. Tensor-parallel ranks of a replica
    keep drawing the same.
    """
    here, mesh = strategy.coordinates, strategy.mesh
    offset = (here.dp * mesh.pp + here.pp) * _SEED_STRIDE
    for generator in own.values():
        generator.reseed(offset)
    if not offset:
        return
    seed = (strategy.spec.seed + offset) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if isinstance(strategy, Replayable):
        for generator in strategy.generators().values():
            generator.reseed(here.dp * _SEED_STRIDE)


class RandomGenerators:
    """All random generators of the rank: those of the process, and ``generators`` that the model and the cell hold."""

    def __init__(self, generators: Mapping[str, ModuleGenerator]) -> None:
        self._generators = generators

    def capture(self) -> RandomState:
        """Capture the current states; takes about 35 us on a CPU."""
        tensors = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        for name, generator in self._generators.items():
            tensors |= {f"{name}/{part}": state for part, state in generator.states().items()}
        return RandomState(tensors, random.getstate(), np.random.get_state())

    def restore(self, state: RandomState) -> None:
        """Restore every generator for which ``state`` has a state."""
        tensors = state.tensors
        for name, generator in self._generators.items():
            parts = {part: tensors[f"{name}/{part}"] for part in generator.states() if f"{name}/{part}" in tensors}
            if parts:
                generator.restore(parts)
        random.setstate(state.python)
        np.random.set_state(state.numpy)
        if "cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda"])
        torch.set_rng_state(tensors["torch"])


@contextmanager
def random_numbers_kept(own: Mapping[str, ModuleGenerator] = MappingProxyType({})) -> Iterator[None]:
    """Afterwards the generators of the process, and the cell's ``own``, are as they were before."""
    generators = RandomGenerators(own)
    state = generators.capture()
    try:
        yield
    finally:
        generators.restore(state)

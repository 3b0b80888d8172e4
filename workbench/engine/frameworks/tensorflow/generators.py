"""Random numbers of Keras layers, such as those of dropout, as generators that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import torch

from workbench.engine.frameworks.tensorflow.mirror import layers_in

_WORD = 2**32


class KerasGenerator:
    """As ``ModuleGenerator``, of a ``keras.random.SeedGenerator``, whose state is a seed and a count of draws."""

    def __init__(self, generator: keras.random.SeedGenerator) -> None:
        self._state: Any = generator.state

    def states(self) -> Mapping[str, torch.Tensor]:
        """As ``ModuleGenerator.states``."""
        return {"": torch.from_numpy(np.array(self._state.numpy()).view(np.uint8))}

    def reseed(self, offset: int) -> None:
        """As ``ModuleGenerator.reseed``."""
        seed, _ = self._state.numpy()
        self._state.assign(np.array([(int(seed) + offset) % _WORD, 0], self._state.numpy().dtype))

    def restore(self, states: Mapping[str, torch.Tensor]) -> None:
        """Undo ``states``."""
        self._state.assign(np.array(states[""].numpy()).view(self._state.numpy().dtype))


def generators_of(model: keras.Model) -> dict[str, KerasGenerator]:
    """Those of all layers of a model, by their order."""
    found: dict[int, Any] = {}
    waiting = [model]
    while waiting:
        layer = waiting.pop(0)
        found |= {id(each): each for each in layer._seed_generators}
        waiting += layers_in(layer)
    return {f"keras{number}": KerasGenerator(each) for number, each in enumerate(found.values())}

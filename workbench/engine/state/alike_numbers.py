"""Random numbers that are the same on all ranks, for what changes the weights that all ranks hold."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from workbench.engine.base.strategy import PlannedRank
from workbench.engine.state.randomness import random_numbers_kept


class AlikeNumbers:
    """``step()``: the number of the step. Where there is one replica, what is drawn is what one process draws."""

    def __init__(self, rank: PlannedRank, step: Callable[[], int]) -> None:
        self._seed = rank.spec.seed
        self._is_one = rank.mesh.dp * rank.mesh.pp == 1
        self._step = step

    @contextmanager
    def drawn(self, purpose: str) -> Iterator[None]:
        """While entered, the process's generators draw numbers that depend on the seed, the step and ``purpose``;
        afterwards they go on as before."""
        if self._is_one:
            yield
            return
        number = zlib.crc32(f"{self._seed} {self._step()} {purpose}".encode())
        with random_numbers_kept():
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            yield

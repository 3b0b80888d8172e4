"""Strategies whose ranks each have a part of every weight, and gather them all for what no step is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from workbench.engine.base.batch import Batch
from workbench.engine.frameworks.torch.whole_model import WholeModelStrategy
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm


class GatheringStrategy(WholeModelStrategy):
    """Evaluations and replays compute with whole weights, which a subclass gathers in ``_gather``."""

    _is_gathered = False

    @abstractmethod
    def _gather(self) -> AbstractContextManager[None]:
        """While entered, all weights are whole on every rank. Collective."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """As ``Gathering.gathered``."""
        if self._is_gathered:
            yield
            return
        self._is_gathered = True
        try:
            with self._gather():
                yield
        finally:
            self._is_gathered = False

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """As ``Replayable.rerun``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered():
            return super().rerun(pieces, seen)

    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered():
            return super().forward(batch)

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered():
            return super().evaluated(batch, outputs=outputs)

    @contextmanager
    def evaluation(self) -> Iterator[torch.nn.Module]:
        """As ``Validating.evaluation``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered(), super().evaluation() as model:
            yield model

"""Data parallelism by MPI: weights and buffers are broadcast, gradients, their norm and the weights of the loss summed.

Nothing overlaps and nothing is fused: what other frameworks do sooner or with less memory can be compared with it.
"""

from __future__ import annotations

import torch
from mpi4py import MPI

from workbench.engine.frameworks.mpi import world
from workbench.engine.frameworks.torch.data_parallel import DataParallelStrategy
from workbench.engine.frameworks.torch_common.losses.average import LossAverage


class MpiStrategy(DataParallelStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    def begin(self) -> None:
        """As ``DataParallelStrategy.begin``: a communicator for this training. It is never freed, which would wait for
        ranks that failed."""
        self._comm = world.group_of(self.mesh.dp)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """As ``DataParallelStrategy.all_reduce``."""
        world.all_reduce(self._comm, tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """As ``DataParallelStrategy.broadcast``."""
        world.broadcast(self._comm, tensor)

    def _make_average(self) -> LossAverage:
        return _LossAverage(self._comm, self.mesh, self.device, self.tell)


class _LossAverage(LossAverage):
    """``LossAverage`` whose sums go over ``comm``."""

    def __init__(self, comm: MPI.Intracomm, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._comm = comm

    def _sum(self, total: torch.Tensor) -> None:
        world.all_reduce(self._comm, total, counted=False)

"""The seam to training frameworks: what every strategy does, and one conformance test that each of them passes.

The trainer owns the loop; a strategy owns what a framework does to a model. What it can do beside training is in
``workbench.engine.base.capabilities``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from workbench.core.config import TrainSpec
from workbench.core.mesh import Mesh
from workbench.engine.base.batch import Batch
from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.workload import Workload

if TYPE_CHECKING:
    import torch


def unmarked(phase: str, micro_batch: int) -> None:
    """Does nothing: stands for a clock of phases where none is measured."""


def untold(name: str, text: str) -> None:
    """Does nothing: stands for a log where there is none."""


def _as_it_is(observer: BatchObserver) -> BatchObserver:
    return observer


class PlannedRank:
    """A rank's place in a plan, and who is told where its step is: all that those who watch need of a strategy."""

    def __init__(self, spec: TrainSpec, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self.mesh: Mesh = spec.plan.mesh
        self.coordinates = self.mesh.coordinates(rank)
        #: told where ``forward_backward`` is, for whoever measures it: "transfer", "forward", "backward",
        #: "communication" (it waits for what was sent in the background) or "bubble" begins, of this micro-batch (-1:
        #: there is one only)
        self.mark: Callable[[str, int], object] = unmarked
        #: told, under a name, what a person should know about this training (each name once)
        self.tell: Callable[[str, str], object] = untold
        #: entered around what changes weights that all ranks hold: random numbers are then the same on all ranks. Its
        #: argument tells apart what is done in a step
        self.alike: Callable[[str], AbstractContextManager[None]] = lambda purpose: nullcontext()
        #: wraps an observer of gradients, so that its own time is not taken for that of training
        self.aside: Callable[[BatchObserver], BatchObserver] = _as_it_is


class Strategy(PlannedRank, ABC):
    """One way to train a workload over the ranks of the default process group, which is initialised already."""

    @classmethod
    @abstractmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        """Refuse, with ``ConfigError``, a workload that this plan cannot train right. No communication."""

    @abstractmethod
    def prepare(self, workload: Workload) -> None:
        """Wrap the model, its optimizer and loss for the plan. Collective. Called once."""

    @abstractmethod
    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor | None:
        """Forward and backward over this replica's share, given in pieces whose gradients are accumulated.

        Returns this replica's part of the loss (detached scalar, on the device), or None on a pipeline stage without
        one: the mean over replicas is the loss of the global batch. Afterwards gradients are reduced: they are those of
        this loss. A piece may be a ``StandIn``, which counts nothing.
        """

    @abstractmethod
    def step(self) -> bool:
        """Clip, update the weights, advance nothing else, clear gradients. False: skipped (loss scaling overflow)."""

    @abstractmethod
    def skip(self) -> None:
        """Clear gradients without an update; instead of ``step``, on all ranks."""

    def editing(self, name: str) -> AbstractContextManager[None]:
        """Around what may change weights in place: a function of the cell called ``name``. Where that would be undone,
        or would part ranks, it is refused with ``ConfigError``."""
        return nullcontext()

    @abstractmethod
    def close(self) -> None:
        """Undo what ``prepare`` did to the process (hooks, groups, singletons), so that another plan can follow."""

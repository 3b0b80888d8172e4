"""The seam to training frameworks: one small protocol, one conformance test that every implementation passes.

The trainer owns the loop; a strategy owns what a framework does to a model. The order of calls in a step is::

    strategy.forward_backward(pieces)   # gradients accumulated and reduced; raw local ones shown to the observer
    strategy.reduced_gradients()        # on steps whose gradients are watched
    strategy.grad_sq()                  # this rank's share of the squared global norm
    strategy.step()                     # clip and update (or skip: loss scaling)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.config import TrainSpec
from workbench.engine.workload import Batch, Workload
from workbench.errors import ConfigError
from workbench.mesh import Mesh

if TYPE_CHECKING:
    import torch

    from workbench.engine.strategies.held import Held


@dataclass(frozen=True, slots=True)
class GradientPart:
    """One parameter's gradient, or this rank's part of it.

    ``layer`` is the qualified name of the owning module in the user's model. ``tensor`` holds exactly the elements that
    count (no padding, loss scale still inside). ``sharded`` as in ``records.GradientStats``. ``scale``: divide by it.
    """

    layer: str
    tensor: torch.Tensor
    sharded: str
    scale: float = 1.0


#: called with each local gradient while backward runs, before anything reduces it
GradientObserver = Callable[[GradientPart], None]


class Strategy(ABC):
    """One way to train a workload over the ranks of the default process group, which is initialised already."""

    def __init__(self, spec: TrainSpec, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self.mesh: Mesh = spec.plan.mesh
        self.coordinates = self.mesh.coordinates(rank)

    @classmethod
    @abstractmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        """Refuse, with ``ConfigError``, a workload that this plan cannot train right. No communication."""

    @abstractmethod
    def prepare(self, workload: Workload) -> None:
        """Wrap the model, its optimizer and loss for the plan. Collective. Called once."""

    @abstractmethod
    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor | None:
        """Forward and backward over this replica's share, given as ``spec.accumulate`` pieces.

        Returns the mean loss over the share (detached scalar, on the device), or None on a pipeline stage without one.
        Afterwards gradients are reduced: the mean over the global batch.
        """

    @abstractmethod
    def grad_sq(self) -> torch.Tensor:
        """This rank's share of the squared L2 norm of the reduced gradient, before clipping, loss scale removed.

        fp32 scalar on the device; the sum over all ranks is the squared global norm, each element counted once.
        Between ``forward_backward`` and ``step``; no communication.
        """

    @abstractmethod
    def step(self) -> bool:
        """Clip, update the weights, advance nothing else, clear gradients. False: skipped (loss scaling overflow)."""

    @abstractmethod
    def watch_local(self, observer: GradientObserver) -> AbstractContextManager[None]:
        """While entered, ``forward_backward`` shows ``observer`` every local gradient once, complete, unreduced."""

    @abstractmethod
    def reduced_gradients(self) -> list[GradientPart]:
        """The reduced gradients this rank holds; where replicas hold the same, each gives a share of the layers, so
        that every layer comes from one rank at least. Between ``forward_backward`` and ``step``; no communication."""

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """Outputs of the model for ``batch`` without gradients, in evaluation mode. Collective over a replica's ranks
        (tp, pp); None on pipeline stages that are not the last."""

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter group."""

    def set_clip(self, clip: float) -> None:
        """From the next step on, clip the gradient to this global norm (0: any). ``ConfigError`` if it cannot."""
        raise ConfigError(f"strategy {self.spec.plan.strategy!r} cannot change the gradient clip", field="clip")

    def set_frozen(self, layers: Collection[str]) -> None:
        """From the next step on, exactly these layers keep weights and optimizer state as they are: their gradient
        counts for nothing. ``ConfigError`` if it cannot."""
        raise ConfigError(f"strategy {self.spec.plan.strategy!r} cannot freeze layers", field="freeze")

    def layers(self) -> list[str]:
        """Qualified names of all modules of the user's model that own parameters, on every rank the same."""
        return []

    def held(self) -> Held:
        """What a checkpoint keeps of this rank. ``ConfigError`` if the strategy cannot be checkpointed."""
        raise ConfigError(f"strategy {self.spec.plan.strategy!r} has no checkpoints", field="checkpoint")

    @abstractmethod
    def close(self) -> None:
        """Undo what ``prepare`` did to the process (hooks, groups, singletons), so that another plan can follow."""

"""The seam to training frameworks: one small protocol, one conformance test that every implementation passes.

The trainer owns the loop; a strategy owns what a framework does to a model. The order of calls in a step is::

    strategy.forward_backward(pieces)   # gradients accumulated and reduced; raw local ones shown to the observer
    strategy.reduced_gradients()        # on steps whose gradients are watched
    strategy.grad_sq()                  # this rank's share of the squared global norm
    strategy.step()                     # clip and update (or skip: loss scaling); or, instead, strategy.skip()
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.core.config import TrainSpec
from workbench.core.mesh import Mesh
from workbench.engine.base.workload import Batch, Workload
from workbench.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from workbench.engine.state.layout import Held
    from workbench.engine.state.randomness import ModuleGenerator


@dataclass(frozen=True, slots=True)
class GradientPart:
    """One parameter's gradient, or this rank's part of it.

    ``layer`` is the qualified name of the owning module in the user's model. ``tensor`` holds exactly the elements that
    count (no padding, loss scale still inside). ``sharded`` as in ``records.GradientStats``. ``scale``: divide by it.
    ``source`` is for the strategy: what the gradient is of.
    """

    layer: str
    tensor: torch.Tensor
    sharded: str
    scale: float = 1.0
    source: Any = None


#: called while backward runs with the local gradients that are about to be reduced together
BatchObserver = Callable[[list[GradientPart]], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Local gradients beside the reduced ones. ``pairs[i]`` belongs to the i-th part: (local, reduced) tensors over the
    same elements, which are the whole part where ``kind`` is "exact", and this rank's slice where it is "slice"."""

    kind: str
    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class WeightPart:
    """One parameter, or this rank's part of it, as the optimizer updates it (the fp32 master where there is one).

    ``moments``: the optimizer's first and second, None where it has none (yet)."""

    layer: str
    weight: torch.Tensor
    sharded: str
    moments: tuple[torch.Tensor | None, torch.Tensor | None]


def unmarked(phase: str, micro_batch: int) -> None:
    """Nobody measures."""


def _as_it_is(observer: BatchObserver) -> BatchObserver:
    return observer


class Strategy(ABC):
    """One way to train a workload over the ranks of the default process group, which is initialised already."""

    def __init__(self, spec: TrainSpec, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self.mesh: Mesh = spec.plan.mesh
        self.coordinates = self.mesh.coordinates(rank)
        #: told where ``forward_backward`` is, for whoever measures it: "transfer", "forward", "backward",
        #: "communication" (it waits for what was sent in the background) or "bubble" begins, of this micro-batch (-1:
        #: there is one only)
        self.mark: Callable[[str, int], object] = unmarked
        #: wraps an observer of gradients, so that its own time is not taken for that of training
        self.aside: Callable[[BatchObserver], BatchObserver] = _as_it_is

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
    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """While entered, ``forward_backward`` shows ``observer`` every local gradient once, complete, unreduced: those
        that are reduced together in one call. Only of ``layers``, if given, and of none that is frozen. ``keep``: what
        was shown stays as it is until ``step``, so that ``compare`` can be asked; it costs a gradient's memory and no
        copy where that can be avoided."""

    @abstractmethod
    def skip(self) -> None:
        """Clear gradients without an update; instead of ``step``, on all ranks."""

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The user's model, or this rank's part of it, as the plan left it: modules have the user's names."""

    @abstractmethod
    def generators(self) -> Mapping[str, ModuleGenerator]:
        """Random generators that the framework keeps inside the model, by name."""

    @abstractmethod
    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor | None:
        """``forward_backward`` once more, without any effect on weights, gradients and buffers; returns the same loss.

        ``seen`` is given each loss before its backward pass. Collective over a replica's ranks (tp, pp); it reduces
        nothing over data-parallel ones. Random generators are the caller's business."""

    @abstractmethod
    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        """The reduced gradients this rank holds, of ``layers`` if given; where replicas hold the same, each gives a
        share of the layers, so that every layer comes from one rank at least (``all_held``: all of them instead).
        Between ``forward_backward`` and ``step``; no communication."""

    def reports(self, layer: str, sharded: str) -> bool:
        """Whether this rank's share of the reduced gradients holds that part of a layer."""
        return True

    def compare(self, parts: Sequence[GradientPart]) -> Comparison | None:
        """Local gradients that ``watch_batches(keep=True)`` showed, beside their reduced values; None where the plan
        has no two of them at once. Between ``forward_backward`` and ``step``; no communication."""
        return None

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """Weights and moments this rank holds, shared out like ``reduced_gradients``; no communication."""
        return []

    def layer_sizes(self) -> dict[str, int]:
        """Elements of every layer of the user's model that has trainable parameters, in its order: the same on all
        ranks, whatever part of the model they hold."""
        return {}

    def loss_scale(self) -> float:
        """What the gradients of this step are multiplied by (1: no loss scaling)."""
        return 1.0

    def framework_norm(self) -> float:
        """The global gradient norm that the framework itself computed in the last ``step``, loss scale removed; NaN
        where it computed none."""
        return math.nan

    def watch_framework_norm(self, watch: bool) -> None:
        """Whether the next ``step`` is to let the framework compute its norm even where ours replaces it. The same on
        all ranks."""
        return

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """Outputs of the model for ``batch`` without gradients, in evaluation mode. Collective over a replica's ranks
        (tp, pp); None on pipeline stages that are not the last."""

    def reducer(self) -> Any:
        """torch's ``DistributedDataParallel`` where that reduces gradients, out of Python's sight; None elsewhere."""
        return None

    def set_clip(self, clip: float) -> None:
        """From the next step on, clip the gradient to this global norm (0: any). ``ConfigError`` if it cannot."""
        raise ConfigError(f"framework {self.spec.plan.framework!r} cannot change the gradient clip", field="clip")

    def set_frozen(self, layers: Collection[str]) -> None:
        """From the next step on, exactly these layers keep weights and optimizer state as they are: their gradient
        counts for nothing. ``ConfigError`` if it cannot."""
        raise ConfigError(f"framework {self.spec.plan.framework!r} cannot freeze layers", field="freeze")

    def layers(self) -> list[str]:
        """Qualified names of all modules of the user's model that own parameters, on every rank the same."""
        return []

    def held(self) -> Held:
        """What a checkpoint keeps of this rank. ``ConfigError`` if the strategy cannot be checkpointed."""
        raise ConfigError(f"framework {self.spec.plan.framework!r} has no checkpoints", field="checkpoint")

    @abstractmethod
    def close(self) -> None:
        """Undo what ``prepare`` did to the process (hooks, groups, singletons), so that another plan can follow."""

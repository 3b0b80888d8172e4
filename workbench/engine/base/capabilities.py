"""What a strategy may be able to do beside training: one protocol each, asked for with ``isinstance``.

A strategy that has no method for something cannot do it; none returns a stand-in. Where a person asked for it, the
framework's table (``workbench.core.frameworks``) says before launch why it is not available; ``needed`` says it later.

The order of calls in a step is::

    strategy.forward_backward(pieces)   # gradients accumulated and reduced; raw local ones shown to the observer
    strategy.reduced_gradients()        # Watchable: on steps whose gradients are watched
    strategy.grad_sq()                  # Normed: this rank's share of the squared global norm
    strategy.step()                     # clip and update (or skip: loss scaling); or, instead, strategy.skip()
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from workbench.core.frameworks import Capability
from workbench.core.mesh import Coordinates, Mesh
from workbench.engine.base.batch import Batch
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.parts import (
    BatchObserver,
    Comparison,
    GradientPart,
    PartNorms,
    WeightMatrix,
    WeightPart,
)
from workbench.errors import ConfigError

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Normed(Protocol):
    """Knows the global norm of the gradient, and clips to it."""

    def grad_sq(self) -> torch.Tensor:
        """This rank's share of the squared L2 norm of the reduced gradient, before clipping, loss scale removed.

        fp32 scalar on the device; the sum over all ranks is the squared global norm, each element counted once.
        Between ``forward_backward`` and ``step``; no communication.
        """

    def part_norms(self) -> PartNorms | None:
        """The norms from which ``grad_sq`` was computed in this step; None before it was. Kept until the next
        ``forward_backward``."""

    def set_clip(self, clip: float) -> None:
        """From the next step on, clip the gradient to this global norm (0: any)."""


@runtime_checkable
class LossScaled(Protocol):
    """May multiply the loss, so that small gradients survive fp16."""

    def loss_scale(self) -> float:
        """What the gradients of this step are multiplied by (1: no loss scaling)."""


@runtime_checkable
class NormReporting(Protocol):
    """Its framework computes a global gradient norm of its own."""

    def framework_norm(self) -> float:
        """The norm that the framework computed in the last ``step``, loss scale removed; NaN where it computed none."""

    def watch_framework_norm(self, watch: bool) -> None:
        """Whether the next ``step`` is to let the framework compute its norm even where ours replaces it. The same on
        all ranks."""


@runtime_checkable
class Watchable(Protocol):
    """Shows gradients, local and reduced, and the weights that they change."""

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """While entered, ``forward_backward`` shows ``observer`` every local gradient once, complete, unreduced: those
        that are reduced together in one call. Only of ``layers``, if given, and of none that is frozen. ``keep``: what
        was shown stays as it is until ``step``, so that ``compare`` can be asked; it costs a gradient's memory and no
        copy where that can be avoided."""

    def local_factor(self) -> float | torch.Tensor:
        """What the local gradients that were shown in this step are to be multiplied by, so that their mean over
        replicas is the reduced gradient: known only when the labels of all pieces are counted. Alike on all ranks.
        After ``forward_backward``; no communication."""

    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        """The reduced gradients this rank holds, of ``layers`` if given; where replicas hold the same, each gives a
        share of the layers, so that every layer comes from one rank at least (``all_held``: all of them instead).
        Between ``forward_backward`` and ``step``; no communication."""

    def reports(self, layer: str, sharded: str) -> bool:
        """Whether this rank's share of the reduced gradients holds that part of a layer."""

    def compare(self, parts: Sequence[GradientPart]) -> Comparison | None:
        """Local gradients that ``watch_batches(keep=True)`` showed, beside their reduced values; None where the plan
        has no two of them at once. Between ``forward_backward`` and ``step``; no communication."""

    def layer_sizes(self) -> dict[str, int]:
        """Elements of every layer of the user's model that has trainable parameters, in its order: the same on all
        ranks, whatever part of the model they hold."""

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """Weights and moments this rank holds, shared out like ``reduced_gradients``; no communication."""


@runtime_checkable
class UpdateWatchable(Protocol):
    """Makes its updates inside of ``forward_backward``, and shows the reduced gradients of each, and the weights."""

    def watch_updates(
        self, observer: BatchObserver, layers: Collection[str] | None = None
    ) -> AbstractContextManager[None]:
        """While entered, ``forward_backward`` shows ``observer``, before an optimizer steps and before clipping, the
        reduced gradients that it steps with: this rank's share of the layers, as in ``Watchable.reduced_gradients``. A
        gradient with the ``source`` of an earlier one takes its place."""

    def layer_sizes(self) -> dict[str, int]:
        """As ``Watchable.layer_sizes``."""

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""


@runtime_checkable
class DdpReduced(Protocol):
    """May leave the reduction of gradients to torch's ``DistributedDataParallel``, out of Python's sight."""

    def reducer(self) -> Any:
        """The ``DistributedDataParallel`` module; None where this plan has none."""


@runtime_checkable
class Checkpointable(Protocol):
    """Its state can be written and read back."""

    def rank_state(self) -> Any:
        """What a checkpoint keeps of this rank: an ``engine.state.layout.RankState``."""


class WeightedLoss(Protocol):
    """The weights that make the losses of pieces and replicas the loss of the global batch."""

    def state(self) -> dict[str, float | None]:
        """The weights of the last step as plain numbers."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``."""


class SharedNorms(Protocol):
    """Batch normalisation layers that use the statistics of all replicas."""

    def recorded(self) -> Mapping[str, torch.Tensor]:
        """What replicas told each other in the last ``rerun``; empty where nothing."""

    def give(self, recorded: Mapping[str, torch.Tensor]) -> None:
        """From now on, use what another process has ``recorded``: this one has the samples of one replica only."""


@runtime_checkable
class Replayable(Protocol):
    """A step can be run once more without any effect, to find where a number that is not finite came from."""

    @property
    def module(self) -> torch.nn.Module:
        """The user's model, or this rank's part of it, as the plan left it: modules have the user's names."""

    @property
    def average(self) -> WeightedLoss:
        """How the losses of the last step were weighted, for another process that runs the step once more."""

    @property
    def norms(self) -> SharedNorms:
        """The batch normalisation layers, for another process that runs the step once more."""

    def generators(self) -> Mapping[str, ModuleGenerator]:
        """Random generators that the framework keeps inside the model, by name."""

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor | None:
        """``forward_backward`` once more, without any effect on weights, gradients and buffers; returns the same loss.

        ``seen`` is given each loss before its backward pass. Collective over a replica's ranks (tp, pp, cp); it reduces
        nothing over data-parallel ones. Random generators are the caller's business."""


@runtime_checkable
class Freezable(Protocol):
    """Single layers can be left as they are."""

    def layers(self) -> list[str]:
        """Qualified names of all modules of the user's model that own parameters, on every rank the same."""

    def set_frozen(self, layers: Collection[str]) -> None:
        """From the next step on, exactly these layers keep weights and optimizer state as they are: their gradient
        counts for nothing."""


@runtime_checkable
class Evaluating(Protocol):
    """The model can be asked for outputs between two steps."""

    rank: int
    mesh: Mesh
    coordinates: Coordinates

    def forward(self, batch: Batch) -> Any:
        """Outputs of the model for ``batch`` without gradients, in evaluation mode. Collective over a replica's ranks
        (tp, pp, cp); None on pipeline stages that are not the last."""


@runtime_checkable
class Gathering(Protocol):
    """Has its weights in parts, which all ranks put together before one of them computes by itself."""

    def gathered(self) -> AbstractContextManager[None]:
        """While entered, ranks compute with the model without each other (but over tp, pp and cp). Every rank enters
        and leaves it, collectively; entered again inside, it does nothing."""


def gathered(strategy: Any) -> AbstractContextManager[None]:
    """``Gathering.gathered`` of a strategy; nothing where it has whole weights."""
    return strategy.gathered() if isinstance(strategy, Gathering) else nullcontext()


@runtime_checkable
class LocallyUpdated(Protocol):
    """Ranks may step by themselves, so that between two exchanges each holds weights of its own."""

    def is_alone(self) -> bool:
        """Whether the gradients of this step are the rank's own, and its update too. Alike on all ranks; from
        ``forward_backward`` to ``step``."""

    def exchanges_weights(self) -> bool:
        """Whether ranks exchange weights after this step."""

    def averaged(self) -> AbstractContextManager[None]:
        """While entered, all ranks hold the means of their weights. Collective where they differ; entered again inside,
        it does nothing."""


def averaged(strategy: Any) -> AbstractContextManager[None]:
    """``LocallyUpdated.averaged`` of a strategy; nothing where all ranks hold the same weights."""
    return strategy.averaged() if isinstance(strategy, LocallyUpdated) else nullcontext()


def is_alone(strategy: Any) -> bool:
    """``LocallyUpdated.is_alone`` of a strategy; False where all ranks hold the same weights."""
    return isinstance(strategy, LocallyUpdated) and strategy.is_alone()


class BatchLoss(Protocol):
    """The loss of a batch: ``value`` is a "mean" over ``count`` (None: the samples), a "total" over ``count``, or a
    "sum" that is divided by nothing; ``form`` says which."""

    @property
    def value(self) -> torch.Tensor:
        """A scalar."""

    @property
    def count(self) -> Any:
        """A number."""

    @property
    def form(self) -> str:
        """ "mean", "total" or "sum"."""


@runtime_checkable
class Validating(Evaluating, Protocol):
    """Computes the loss of data that are not trained on, as the training step would."""

    tell: Callable[[str, str], object]

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, BatchLoss] | None:
        """Outputs of the model for ``batch`` (None unless ``outputs``) and its loss, without gradients, in evaluation
        mode. Collective over a replica's ranks (tp, pp, cp), and over no others; None on pipeline stages that are not
        the last. ``ConfigError`` when there are no outputs: ``loss_fn`` did not call the model."""

    def evaluation(self) -> AbstractContextManager[torch.nn.Module]:
        """While entered, the user's model, which it gives, is in evaluation mode and computes without gradients, in the
        run's precision. ``ConfigError`` where a pipeline has the whole model on no rank."""


@runtime_checkable
class Inspectable(Protocol):
    """Lets its modules be looked at while they compute."""

    @property
    def module(self) -> torch.nn.Module:
        """As ``Replayable.module``."""

    def output_sharding(self, module: torch.nn.Module) -> str | None:
        """The mesh axes over which a module's output is split, "" where each rank of a replica has the whole of it;
        None where the output is split as the module's input is."""


@runtime_checkable
class PartlyInspectable(Inspectable, Protocol):
    """Does not show all that ``watch`` may ask for."""

    @property
    def hidden(self) -> Mapping[str, str]:
        """Names of ``watch`` -> why it does not show that."""


@runtime_checkable
class Shaped(Protocol):
    """Knows its weights as matrices."""

    def weight_matrices(self) -> list[WeightMatrix]:
        """Trained weights of at least two dimensions that this rank holds, as the forward pass uses them, shared out
        like ``Watchable.weights``: of those that are split, all ranks with a part have one, in the same order. No
        communication."""

    def sum_over_shards(self, values: torch.Tensor) -> None:
        """Add up ``values``, in place, over the ranks that hold parts of the same weights. Collective over these."""


@runtime_checkable
class Pipelined(Protocol):
    """May cut the model into stages: then ``forward_backward`` has a loss on the last one only."""

    def has_loss(self) -> bool:
        """Whether ``forward_backward`` returns a loss on this rank."""


#: what a strategy has to have, for a plugin to be said to be capable of it
PROTOCOLS: Mapping[Capability, type] = {
    Capability.NORMED: Normed,
    Capability.WATCHABLE: Watchable,
    Capability.CHECKPOINTABLE: Checkpointable,
    Capability.REPLAYABLE: Replayable,
    Capability.PIPELINED: Pipelined,
    Capability.FREEZABLE: Freezable,
    Capability.EVALUATING: Evaluating,
    Capability.INSPECTABLE: Inspectable,
}

Wanted = TypeVar("Wanted")


def needed(strategy: Any, protocol: type[Wanted], capability: Capability) -> Wanted:
    """``strategy`` as what can do it. ``ConfigError`` with the framework's reason when it cannot."""
    if not isinstance(strategy, protocol):
        plan = strategy.spec.plan
        lacks = getattr(strategy, "lacks", {}).get(capability, "")
        reason = f"{capability.value}: not available ({lacks})" if lacks else plan.why_unavailable(capability)
        raise ConfigError(reason or f"{capability.value}: not available with {plan.framework} {plan.plugin}")
    return strategy

"""What is trained: a model with its data and loss, before any plan touches it.

A recipe builds one; the cell form of ``%dist_train`` makes one from the names the cell defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from workbench.core.knobs import Knobs
from workbench.engine.base.batch import Batch
from workbench.engine.base.capabilities import Evaluating
from workbench.engine.base.user_log import UserLog

if TYPE_CHECKING:
    import torch


#: criterion(outputs, batch) -> mean loss over the batch; the only form a pipeline can use
Criterion = Callable[[Any, Batch], "torch.Tensor"]
#: loss_fn(model, batch) -> mean loss over the batch, or (sum of losses, count)
LossFunction = Callable[["torch.nn.Module", Batch], "torch.Tensor | tuple[torch.Tensor, Any]"]


class BatchSource(Protocol):
    """Where batches come from. ``batches(dp, dp_size, start)`` yields this replica's share of each global batch from
    number ``start`` on, for ever, the same on every call; samples are in the same order whatever ``dp_size`` is.
    ``indices(number, dp, dp_size)``: dataset indices of that share of batch ``number`` (from 0), None if unknown."""

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one replica, one after another."""

    def indices(self, number: int, dp: int, dp_size: int) -> list[int] | None:
        """Dataset indices of a replica's share of one batch."""


@runtime_checkable
class Positioned(Protocol):
    """A batch source whose position a checkpoint records in samples, so that another batch size goes on there."""

    def position(self, number: int) -> dict[str, Any]:
        """Where batch ``number`` begins, as JSON types."""

    def begin_at(self, position: dict[str, Any], number: int) -> None:
        """Let batch ``number`` begin at ``position``; ``ConfigError`` when this source cannot."""

    def check_repeatable(self) -> None:
        """Raise ``ConfigError`` where batches that were read cannot be read again in this process."""


class KeptState(Protocol):
    """What a cell keeps beside its model, for checkpoints. ``names``: variables that are held; ``left_out``: those of
    objects that may change and are not held."""

    names: list[str]
    left_out: list[str]

    def capture(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The state as JSON types by name, and the tensors that these refer to."""

    def check(self, plain: Mapping[str, Any], tensors: Any, where: str) -> None:
        """Raise ``RunError`` when a captured state does not fit; nothing is changed."""

    def restore(self, plain: Mapping[str, Any], tensors: Any) -> None:
        """Undo ``capture``, in place; ``tensors`` has ``get_tensor(key)``."""


class TakenNames(Protocol):
    """Names that a cell takes from elsewhere: ``kept``, as JSON types, and ``missing``, which cannot be kept."""

    kept: dict[str, dict[str, Any]]
    missing: list[str]

    def sources(self) -> str:
        """Everything that is made again by running it."""


@dataclass(kw_only=True)
class Evaluation:
    """What an evaluation found: ``values`` name -> number or matrix, ``texts`` sampled texts to read."""

    values: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[str] = ()


@dataclass(kw_only=True)
class Workload:
    """A model, its optimizer, data and loss.

    ``beside``: modules and parameters that the optimizer updates too and that are no part of the model, by name.
    Exactly one of ``loss_fn`` and ``criterion`` is set. ``tokens_per_sample`` is 1 where a model has no tokens, and
    None where each batch shows how many it has (``data.tokens_in``).
    ``evaluate(strategy)`` runs on every rank at the same step (it may use ``strategy.forward``) and returns the same
    values on every rank, or values on rank 0 only. ``sample(strategy)``, likewise, gives texts only. ``knobs``: those
    that the training script or the recipe declares, now or later; its parts read their present values. ``cell_state``:
    what a cell keeps beside these, for checkpoints. ``cell_names``: what it took from elsewhere, unless the run
    directory had that. ``names``: what the cell defines and sees. ``user_log``: the ``log`` that its code calls.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    data: BatchSource
    loss_fn: LossFunction | None = None
    criterion: Criterion | None = None
    lr_scheduler: Any = None
    tokens_per_sample: int | None = 1
    evaluate: Callable[[Evaluating], Evaluation] | None = None
    sample: Callable[[Evaluating], Sequence[str]] | None = None
    knobs: Knobs = field(default_factory=Knobs)
    cell_state: KeptState | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)
    cell_names: TakenNames | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    user_log: UserLog = field(default_factory=UserLog)

"""What is trained: a model with its data and loss, before any plan touches it.

A recipe builds one; the cell form of ``%dist_train`` makes one from the names the cell defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from workbench.core.knobs import Knobs
from workbench.core.rules.own_alerts import OwnAlerts
from workbench.engine.base.batch import Batch
from workbench.engine.base.capabilities import Evaluating
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.user_log import UserLog

if TYPE_CHECKING:
    import torch


#: criterion(outputs, batch) -> mean loss over the batch; the only form a pipeline can use
Criterion = Callable[[Any, Batch], "torch.Tensor"]
#: loss_fn(model, batch) -> mean loss over the batch, or (sum of losses, count)
LossFunction = Callable[["torch.nn.Module", Batch], "torch.Tensor | tuple[torch.Tensor, Any]"]
#: train_step(model, batch) -> loss of the batch, or a dict of named losses; it makes its own updates
OwnStep = Callable[["torch.nn.Module", Batch], Any]


class EpochEnd:
    """Stands between two batches of a source, the last of an epoch and the first of the next."""


EPOCH_END = EpochEnd()


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

    def begin_at(self, position: dict[str, Any], number: int) -> str:
        """Let batch ``number`` begin at ``position``; ``ConfigError`` when this source cannot. Returns what a user has
        to know of it, or ""."""

    def check_repeatable(self) -> None:
        """Raise ``ConfigError`` where batches that were read cannot be read again in this process."""


@runtime_checkable
class Epochal(Protocol):
    """A batch source that is read in epochs: passes over all its samples."""

    def marked(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch | EpochEnd]:
        """As ``batches``, with ``EPOCH_END`` after the last batch of each epoch. The next epoch is not touched before
        its first batch is asked for."""

    def batches_through(self, epochs: int) -> int | None:
        """How many batches have been given when ``epochs`` epochs have been read; None where only reading tells."""

    def epochs_at(self, number: int) -> float | None:
        """Epochs that have been read before batch ``number``, with the share of the begun one; None where only
        reading tells."""


class KeptState(Protocol):
    """What a cell keeps beside its model, for checkpoints. ``names``: variables that are held."""

    names: list[str]

    @property
    def left_out(self) -> list[str]:
        """The variables that are not held, and that the training has changed."""

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
    Exactly one of ``loss_fn`` and ``criterion`` is set; with a ``train_step`` they serve the evaluation, and there may
    be none.

    ``lr_scheduler`` is stepped after each "step", "epoch" or "evaluation" (``schedule_every``), with the value of the
    validation that ``schedule_metric`` names ("": without).
    ``hooks``: ``on_step`` and ``on_epoch``, called with a number and values.
    ``tokens_per_sample`` is 1 where a model has no tokens, and None where each batch shows how many it has
    (``data.tokens_in``).
    ``evaluate(strategy)`` runs on every rank at the same step (it may use ``strategy.forward``) and returns the same
    values on every rank, or values on rank 0 only. ``sample(strategy)``, likewise, gives texts only.
    ``knobs``: those that the training script or the recipe declares, now or later; its parts read their present values.
    ``pipeline_split``: the modules with which pipeline stages begin, all but the first; empty: the plan finds them.
    ``cell_state``: what a cell keeps beside these, for checkpoints.
    ``generators``: random generators of its own that its model and loss hold, by name.
    ``cell_names``: what it took from elsewhere, unless the run directory had that.
    ``names``: what the cell defines and sees.
    ``after_split(model)``: to be called once a plan has split the model, whose weights may still be views of files.
    ``base``: frozen weights that a directory has, which checkpoints leave out: name -> ``pretrained.base.BaseTensor``.
    ``tokenizer``: what ``save_pretrained`` writes too.
    ``alerts``: those that a cell sets up; ``on_alert``: its function that is told of each.
    ``user_log``: the ``log`` that a cell's code calls.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    data: BatchSource
    loss_fn: LossFunction | None = None
    criterion: Criterion | None = None
    train_step: OwnStep | None = None
    lr_scheduler: Any = None
    schedule_every: str = "step"
    schedule_metric: str = ""
    hooks: Mapping[str, Callable[[int, Mapping[str, Any]], Any]] = field(default_factory=dict)
    tokens_per_sample: int | None = 1
    evaluate: Callable[[Evaluating], Evaluation] | None = None
    sample: Callable[[Evaluating], Sequence[str]] | None = None
    knobs: Knobs = field(default_factory=Knobs)
    cell_state: KeptState | None = None
    generators: Mapping[str, ModuleGenerator] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)
    pipeline_split: Sequence[str] = ()
    cell_names: TakenNames | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    after_split: Callable[[torch.nn.Module], object] | None = None
    base: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    alerts: OwnAlerts = field(default_factory=OwnAlerts)
    on_alert: Callable[[dict[str, Any]], object] | None = None
    user_log: UserLog = field(default_factory=UserLog)

"""What a cell measures on its validation data: sums and counts, which add up over batches and replicas."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.engine.base.capabilities import BatchLoss
from workbench.errors import ConfigError

#: how what is found is put together: a mean of what was counted, or a sum
MEAN, SUM = "mean", "sum"


@dataclass(slots=True)
class Totals:
    """``sums`` and ``counts`` by name; ``forms`` says what becomes of them; ``matrices`` are added up element by
    element; ``computed``: values of the metrics that keep a state; ``errors``: why a name has no value."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    matrices: dict[str, torch.Tensor] = field(default_factory=dict)
    computed: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, total: float, count: float, form: str = MEAN) -> None:
        """Add a sum over ``count``. What was counted zero times adds nothing, whatever its sum (a mean of no label is
        not a number)."""
        self.forms[name] = form
        self.sums[name] = self.sums.get(name, 0.0) + (total if count else 0.0)
        self.counts[name] = self.counts.get(name, 0.0) + count

    def add_loss(self, term: BatchLoss, samples: int) -> None:
        """Add the loss of a batch, as the training step would weigh it."""
        value = float(term.value)
        if term.form == "sum":
            self.add("loss", value, 1.0, SUM)
        elif term.form == "total":
            self.add("loss", value, float(_known(term.count)))
        else:
            count = float(samples if term.count is None else term.count)
            self.add("loss", value * count, count)

    def add_found(self, name: str, found: Any, samples: int) -> None:
        """Add what a metric returned for ``samples`` samples: a mean over them, (sum, count), a tensor with a value for
        each, or a matrix. ``ConfigError`` for anything else."""
        parts = found if isinstance(found, tuple) else (found,)
        if any(isinstance(part, torch.Tensor) and part.is_meta for part in parts):
            raise ConfigError(
                "it returned a tensor on the device 'meta', which has no values: compute it from outputs and batch, "
                "whose device is the rank's",
                field="metrics",
            )
        if isinstance(found, torch.Tensor) and found.dim() == 1:
            self.add(name, float(found.double().sum()), float(found.numel()))
        elif isinstance(found, torch.Tensor | list) and _dimensions(found) == 2:
            matrix = torch.as_tensor(found).detach().cpu().double()
            self.matrices[name] = self.matrices[name] + matrix if name in self.matrices else matrix
        elif isinstance(found, tuple) and len(found) == 2:
            self.add(name, float(found[0]), float(found[1]))
        else:
            self.add(name, _number(found) * samples, float(samples))

    def values(self) -> dict[str, Any]:
        """Name -> number or matrix, without those that have an error or were counted zero times."""
        found: dict[str, Any] = {}
        for name, total in self.sums.items():
            if name not in self.errors and self.counts[name]:
                found[name] = total if self.forms[name] == SUM else total / self.counts[name]
        shown = {name: matrix for name, matrix in self.matrices.items() if name not in self.errors}
        found |= {name: value for name, value in self.computed.items() if isinstance(value, float)}
        shown |= {name: torch.tensor(value) for name, value in self.computed.items() if isinstance(value, list)}
        return found | {name: _plain(matrix) for name, matrix in shown.items()}


def added_up(parts: list[Totals]) -> Totals:
    """The totals of all ranks, in their order; of several errors the first."""
    whole = Totals()
    for rank, part in enumerate(parts):
        for name, total in part.sums.items():
            whole.add(name, total, part.counts[name], part.forms[name])
        for name, matrix in part.matrices.items():
            whole.matrices[name] = whole.matrices[name] + matrix if name in whole.matrices else matrix
        for name, error in part.errors.items():
            whole.errors.setdefault(name, f"{error} (rank {rank})")
    return whole


def checked_metrics(metrics: Any, *, also: Collection[str] = ()) -> dict[str, Any]:
    """The cell's ``metrics``, by name; ``ConfigError`` for what is no mapping of functions, and for names (``also``:
    those of other metrics) that are taken."""
    if not isinstance(metrics, Mapping):
        raise ConfigError(
            f'metrics is a {type(metrics).__name__}: define metrics = {{"accuracy": function(outputs, batch)}}',
            field="metrics",
        )
    if "loss" in {*metrics, *also}:
        raise ConfigError("metrics: the name 'loss' is that of the validation loss; use another", field="metrics")
    for name, function in metrics.items():
        if not callable(function):
            raise ConfigError(
                f"metrics[{name!r}] is a {type(function).__name__}: it must be a function of (outputs, batch)",
                field="metrics",
            )
    return {str(name): function for name, function in metrics.items()}


def _known(count: Any) -> Any:
    assert count is not None  # a total has one
    return count


def _number(found: Any) -> float:
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigError(
            f"it returned {what}: return a number (the mean over the batch), (sum, count), or one value per sample",
            field="metrics",
        ) from error


def _dimensions(found: Any) -> int:
    if isinstance(found, torch.Tensor):
        return found.dim()
    return 2 if found and all(isinstance(row, list) for row in found) else 1


def _plain(matrix: torch.Tensor) -> list[list[float]]:
    whole = bool((matrix == matrix.round()).all())
    return [[int(value) if whole else value for value in row] for row in matrix.tolist()]

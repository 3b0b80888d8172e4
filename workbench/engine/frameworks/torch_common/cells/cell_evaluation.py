"""The validation that a cell defines: its loss and metrics over data that are not trained on.

Every sample is counted once: replicas take shares of each batch, and sums and counts are added up, so the values are
those of one process whatever the plan. Nothing of training changes: the model computes in evaluation mode without
gradients, and random generators are as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

from workbench.engine.agree.exchange import Alone, Exchange
from workbench.engine.base.batch import Batch, StandIn, contents
from workbench.engine.base.capabilities import Evaluating, Validating
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.workload import Evaluation
from workbench.engine.data.batches import samples_in
from workbench.engine.data.loader_source import LoaderSource
from workbench.engine.frameworks.torch_common.batches import to_device
from workbench.engine.frameworks.torch_common.cells.metrics import Totals, added_up
from workbench.engine.frameworks.torch_common.cells.stateful_metrics import StatefulMetric
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.state.randomness import random_numbers_kept
from workbench.errors import ConfigError

Metric = Callable[[Any, Batch], Any]


class CellEvaluation:
    """``Workload.evaluate`` of a cell. ``data``: None if it defines none.

    ``metrics``: name -> function(outputs, batch); ``stateful``: those that keep a state over batches; ``evaluate``:
    function(model, loader) -> name -> value, instead of loss and metrics; ``sample``: function(model) -> texts. A
    metric that raises has no value, and is told once, and so is a sample; the training goes on.
    """

    def __init__(
        self,
        data: LoaderSource | None,
        *,
        metrics: Mapping[str, Metric],
        stateful: Mapping[str, StatefulMetric] = MappingProxyType({}),
        evaluate: Callable[[Any, Any], Mapping[str, Any]] | None = None,
        sample: Callable[[Any], Any] | None = None,
    ) -> None:
        self._data = data
        self._metrics = metrics
        self._stateful = stateful
        self._evaluate = evaluate
        self._sample = sample
        #: those of the training: after an evaluation they are as they were
        self.generators: Mapping[str, ModuleGenerator] = {}
        self._exchange: Exchange = Alone()

    @property
    def _names(self) -> Collection[str]:
        return {*self._metrics, *self._stateful}

    @property
    def writes(self) -> bool:
        """Whether there is a ``sample(model)``."""
        return self._sample is not None

    def share_with(self, exchange: Exchange) -> None:
        """As ``LoaderSource.share_with``."""
        self._exchange = exchange
        if self._data is not None:
            self._data.share_with(exchange)

    def rehearse(self, strategy: Evaluating) -> Mapping[str, Any]:
        """Evaluate one batch, before the first step; its values. ``ConfigError`` on all ranks when something is wrong
        with it, or when there are no data. Collective."""
        found = self._measured(_able(strategy), most=1)
        if found.errors:
            name, error = next(iter(found.errors.items()))
            raise ConfigError(_told(name, error, self._names), field=name if name == "evaluate" else "metrics")
        if self._data is not None and self._evaluate is None and not found.counts:
            raise ConfigError("the evaluation data contain no samples", field="eval_dataset")
        return found.values()

    def __call__(self, strategy: Evaluating) -> Evaluation:
        """The values over all evaluation data, the same on every rank, and sampled texts. Collective."""
        able = _able(strategy)
        found = self._measured(able)
        for name, error in found.errors.items():
            if strategy.rank == 0:
                able.tell(f"metric_{name}", _told(name, error, self._names))
        for name, value in found.values().items():
            if isinstance(value, float) and not math.isfinite(value) and strategy.rank == 0:
                able.tell(f"metric_{name}", _told(name, f"the value is {value}", self._names))
        return Evaluation(values=found.values(), texts=self.texts(strategy))

    def texts(self, strategy: Evaluating) -> Sequence[str]:
        """What ``sample(model)`` gives, or nothing. Collective."""
        if self._sample is None:
            return ()
        able = _able(strategy)
        texts: Sequence[str] = ()
        error = ""
        try:
            with random_numbers_kept(self.generators), able.evaluation() as model:
                texts = _as_texts(self._sample(model))
        except Exception as raised:  # told below, on all ranks: what only watches ends no training
            error = _words(raised)
        errors = [f"{words} (rank {rank})" for rank, words in enumerate(self._exchange.gathered(error)) if words]
        if errors and strategy.rank == 0:
            able.tell("sample", f"sample(model): {errors[0]}")
        return texts

    def _measured(self, strategy: Validating, most: int | None = None) -> Totals:
        own = Totals()
        for metric in self._stateful.values():
            metric.begin(rank_device())
        with random_numbers_kept(self.generators):
            try:
                if self._evaluate is not None:
                    self._add_users(own, strategy, most)
                elif self._data is not None:
                    for batch in islice(self._batches(strategy), most):
                        self._add(own, strategy, batch)
            except Exception as error:  # told below, on all ranks: what only watches ends no training
                own.errors["evaluate" if self._evaluate is not None else "loss"] = _words(error)
        counts = strategy.coordinates.leads
        whole = added_up(self._exchange.gathered(own if counts or own.errors else Totals()))
        for name, metric in self._stateful.items():
            try:
                whole.computed |= metric.values(name, self._exchange, is_failed=name in whole.errors)
            except Exception as error:  # the same on all ranks, which have the same states
                whole.errors[name] = _words(error)
        return whole

    def _batches(self, strategy: Validating) -> Iterator[Batch]:
        assert self._data is not None
        for batch in self._data.once(strategy.coordinates.dp, strategy.mesh.dp):
            if not isinstance(batch, StandIn):
                yield batch

    def _add(self, own: Totals, strategy: Validating, batch: Batch) -> None:
        found = strategy.evaluated(batch, outputs=bool(self._metrics or self._stateful))
        if found is None or not strategy.coordinates.leads:  # an earlier stage; or another rank adds the same
            return
        outputs, term = found
        samples = samples_in(batch)
        own.add_loss(term, samples)
        here = to_device(contents(batch), rank_device())
        for name, metric in self._metrics.items():
            if name not in own.errors:
                try:
                    own.add_found(name, metric(outputs, here), samples)
                except Exception as error:  # told by whoever asked
                    own.errors[name] = _words(error)
        for name, stateful in self._stateful.items():
            if name not in own.errors:
                try:
                    stateful.add(outputs, here)
                except Exception as error:  # told by whoever asked
                    own.errors[name] = _words(error)

    def _add_users(self, own: Totals, strategy: Validating, most: int | None) -> None:
        assert self._evaluate is not None
        loader = _Loader(lambda: islice(self._batches(strategy), most) if self._data is not None else iter(()))
        with strategy.evaluation() as model:
            found = self._evaluate(model, loader if self._data is not None else None)
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"it returned a {type(found).__name__}: return a dict of name -> number, (sum, count) or matrix",
                field="evaluate",
            )
        for name, value in found.items():
            own.add_found(str(name), value, loader.samples or 1)


class _Loader:
    """This replica's share of the evaluation batches, on its device. ``samples``: how many it gave in its last pass."""

    def __init__(self, batches: Callable[[], Iterator[Batch]]) -> None:
        self._batches = batches
        self.samples = 0

    def __iter__(self) -> Iterator[Batch]:
        self.samples = 0
        for batch in self._batches():
            self.samples += samples_in(batch)
            yield to_device(contents(batch), rank_device())


def _able(strategy: Evaluating) -> Validating:
    if not isinstance(strategy, Validating):
        plan = strategy.spec.plan  # type: ignore[attr-defined]
        raise ConfigError(
            f"{plan.framework} {plan.plugin} does not evaluate the data of a cell: leave out eval_dataset and "
            "eval_dataloader, or use --framework torch or colossal",
            field="eval_dataset",
        )
    return strategy


def _as_texts(found: Any) -> list[str]:
    if isinstance(found, str):
        return [found]
    if not isinstance(found, list | tuple):
        raise ConfigError(f"it returned a {type(found).__name__}: return a text or a list of texts", field="sample")
    return [str(text) for text in found]


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def _told(name: str, error: str, metrics: Collection[str]) -> str:
    what = (
        f"metrics[{name!r}]" if name in metrics else "evaluate(model, loader)" if name == "evaluate" else "validation"
    )
    return f"{what}: {error}"

"""Evaluations between two steps: values and texts are logged by rank 0, and told to whoever follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.core.frameworks import Capability
from workbench.core.records import EventKind
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.capabilities import Evaluating, averaged, gathered, needed
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.errors import ConfigError
from workbench.rundir.log import RankLogWriter


class Evaluations:
    """Evaluates the workload, on all ranks at once. ``enter``: is told the phase."""

    def __init__(
        self,
        workload: Workload,
        strategy: Strategy,
        control: AgreedControl,
        log: RankLogWriter,
        enter: Callable[[str], None],
    ) -> None:
        self._workload = workload
        self._strategy = strategy
        self._control = control
        self._log = log
        self._enter = enter

    @property
    def can_evaluate(self) -> bool:
        """Whether there is something to evaluate with."""
        return self._workload.evaluate is not None and isinstance(self._strategy, Evaluating)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Evaluate; the values, which other ranks than 0 may lack. ``ConfigError`` when there is nothing to do it
        with."""
        if self._workload.evaluate is None:
            raise ConfigError("there is no validation data: define eval_dataset or eval_dataloader in the cell")
        self._enter("evaluate")
        with averaged(self._strategy), gathered(self._strategy):
            found = self._workload.evaluate(self._evaluating())
        if self._strategy.rank == 0:
            for name, value in found.values.items():
                self._log.event(EventKind.VALIDATION, name, value, step=step)
        self._log_texts(found.texts, step)
        return dict(found.values)

    def agreed(self, values: dict[str, Any]) -> dict[str, Any]:
        """Rank 0's values of an evaluation, on every rank. Collective."""
        first: dict[str, Any] = self._control.gathered(values if self._strategy.rank == 0 else None)[0]
        return first

    def sample(self, step: int) -> None:
        """Let the model write; rank 0 logs it. ``ConfigError`` when it writes nothing."""
        is_cell = self._workload.cell_state is not None
        if self._workload.sample is None and (is_cell or self._workload.evaluate is None):
            raise ConfigError("nothing generates samples: define sample(model) in the cell")
        self._enter("evaluate")
        with averaged(self._strategy), gathered(self._strategy):
            if self._workload.sample is not None:
                texts = self._workload.sample(self._evaluating())
            else:
                texts = self._workload.evaluate(self._evaluating()).texts  # type: ignore[misc]
        self._log_texts(texts, step)

    def _evaluating(self) -> Evaluating:
        return needed(self._strategy, Evaluating, Capability.EVALUATING)

    def _log_texts(self, texts: Any, step: int) -> None:
        for text in texts if self._strategy.rank == 0 else ():
            self._log.event(EventKind.SAMPLE, "text", text, step=step)

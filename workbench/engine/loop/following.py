"""What follows the values of a training between its steps: rules that end it, the cell's hooks, and its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.core.config import TrainSpec
from workbench.core.rules.criteria import names_in, parse_rules, value_of
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.engine.loop.hooks import Hooks
from workbench.engine.loop.learning_rate import LearningRate
from workbench.engine.loop.stopping import Stopping
from workbench.engine.state.plain_state import from_plain, to_plain


class Following:
    """Is told every step, evaluation that is due, and end of an epoch; on all ranks with the same values.

    ``strategy``: as of ``Hooks``.
    """

    def __init__(
        self,
        spec: TrainSpec,
        workload: Workload,
        lr: LearningRate,
        strategy: Strategy,
    ) -> None:
        self._workload = workload
        self._lr = lr
        self._stopping = Stopping(parse_rules(spec.stop_when))
        self._hooks = Hooks(workload.hooks, strategy)
        self._follows_best = bool(spec.save_best)
        self.values: dict[str, Any] = {}  # of the last evaluation that was due

    @property
    def reason(self) -> str:
        """Why the training ends before its last step; "" while it does not."""
        return self._stopping.reason

    @property
    def follows_losses(self) -> bool:
        """Whether the training loss of every step is needed."""
        return self._stopping.follows_training or bool(self._workload.hooks)

    @property
    def follows_evaluations(self) -> bool:
        """Whether the values of evaluations are needed on every rank."""
        rules = self._stopping.follows_validation or self._follows_best
        return rules or bool(self._workload.schedule_metric or self._workload.hooks)

    @property
    def follows_epochs(self) -> bool:
        """Whether something waits for the ends of epochs."""
        return self._workload.schedule_every == "epoch" or self._hooks.follow_epochs

    def stepped(self, step: int, loss: float, *, lr: float, skipped: bool, epoch: float) -> None:
        """After a step whose loss, of the global batch, is ``loss``. ``epoch``: epochs that are done."""
        self._stopping.stepped(step, loss)
        if self._workload.hooks:
            values = {"loss": loss, "lr": lr, "skipped": skipped, "epoch": epoch, **self._named_values()}
            self._hooks.stepped(step, values, None if skipped else loss)

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """After an evaluation that was due."""
        self.values = dict(values)
        self._stopping.evaluated(step, values)
        self._step_schedule("evaluation")

    def epoch_ended(self, epoch: int, step: int) -> None:
        """After the last step of an epoch (from 1) and its evaluation."""
        self._step_schedule("epoch")
        self._hooks.epoch_ended(epoch, {"lr": self._lr.now, "step": step, **self._named_values()})

    def _step_schedule(self, after: str) -> None:
        if self._workload.lr_scheduler is None or self._workload.schedule_every != after:
            return
        metric = self._workload.schedule_metric
        value = value_of(metric, self.values) if metric else None
        if not metric:
            self._lr.advance_schedule()
        elif value is not None:
            self._lr.advance_schedule(value)

    def _named_values(self) -> dict[str, float]:
        """The numbers of the last evaluation, by the names that criteria know."""
        named = {name: value_of(name, self.values) for name in names_in(self.values)}
        return {name: value for name, value in named.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON types."""
        numbers = {name: value for name, value in self.values.items() if isinstance(value, int | float)}
        found = {"values": numbers, "stopping": self._stopping.state(), "epoch_loss": self._hooks.state()}
        plain: dict[str, Any] = to_plain(found)
        return plain

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``; {}: of a checkpoint that has none."""
        found = from_plain(dict(state))
        self.values = dict(found.get("values", {}))
        self._stopping.restore(found.get("stopping", {}))
        self._hooks.restore(found.get("epoch_loss", [0.0, 0]))

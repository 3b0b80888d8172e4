"""Statistics of gradients where a step makes its own updates: of the gradients that optimizers step with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from workbench.core.frameworks import Capability
from workbench.engine.base.capabilities import UpdateWatchable, needed
from workbench.engine.base.parts import GradientPart
from workbench.engine.base.strategy import PlannedRank
from workbench.engine.watch.host.governor import FULL
from workbench.engine.watch.torch.gradient_statistics import GradientCollector
from workbench.engine.watch.torch.gradient_watch import GradientWatch


class UpdateWatch(GradientWatch):
    """A ``GradientWatch`` that sees gradients after they were reduced, and that of a parameter's last update in a step.
    How weights change is measured over the whole step."""

    _has_local = False

    def _source(self, strategy: PlannedRank) -> Any:
        return needed(strategy, UpdateWatchable, Capability.WATCHABLE)

    def _new_collector(self) -> GradientCollector | None:
        if self._code != FULL or not self._whole:
            return None  # norms of layers are known at every step
        return GradientCollector(sampled=self._every is None, precision=self._precision)

    def around(self, step: int) -> AbstractContextManager[None]:
        if not isinstance(self._collector, GradientCollector):
            return nullcontext()
        return self._seeing(self._collector)

    @contextmanager
    def _seeing(self, collector: GradientCollector) -> Iterator[None]:
        def take(parts: Sequence[GradientPart]) -> None:
            with self._cost:
                collector.replace(parts)

        with self._cost:
            self._weight_layers = self._fitting(self._layers)
            self._weights.before(self._watchable.weights(self._weight_layers))
        with self._watchable.watch_updates(take, self._layers):
            yield

    def _finish_full_set(self, step: int, own: GradientCollector) -> None:
        self._pending.append(own.finish(step, self._strategy.rank, "reduced"))

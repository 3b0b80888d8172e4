"""Names, once per run, the layers that got no gradient in the first steps: often a layer that the loss does not use."""

from __future__ import annotations

from workbench.engine.base.capabilities import Watchable
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy

_FIRST_STEPS = 3
_NAMED = 8


class WithoutGradient(StepObserver):
    """Rank 0 looks at the reduced gradients of the first steps; it holds every layer unless there are stages."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._seen: set[str] = set()
        self._left = _FIRST_STEPS if strategy.rank == 0 and strategy.mesh.pp == 1 else 0

    def reduced(self, step: int) -> None:
        if not self._left or not isinstance(self._strategy, Watchable):
            return
        self._left -= 1
        self._seen |= {part.layer for part in self._strategy.reduced_gradients(all_held=True)}
        missing = [layer or "(model)" for layer in self._strategy.layer_sizes() if layer not in self._seen]
        if not self._left and missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            named = ", ".join(missing[:_NAMED]) + more
            self._strategy.tell(
                "no_gradient",
                f"no gradient in the first {_FIRST_STEPS} steps: {named}. The loss does not use these layers, so they "
                "are not trained",
            )

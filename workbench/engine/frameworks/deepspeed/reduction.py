"""Lets DeepSpeed's ZeRO reduce the same gradients in the same order on every rank.

DeepSpeed puts gradients into buckets as backward computes them. Where ranks use different parameters, as with experts
or branches, or reach them in another order, gradients of different parameters would be added up. Here such a step is
reduced after backward, in one order and with zeros for gradients that a rank does not have; so are those steps whose
local gradients are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from workbench.engine.base.parts import BatchObserver, GradientPart
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.parameters import RankParameter


class ZeroReduction:
    """The reduction of ``engine``, a ``DeepSpeedEngine`` of stage 1 to 3. ``may_differ``: a step may leave
    parameters unused, or ranks may use different ones: DeepSpeed would take zeros, or an earlier step's gradients."""

    #: the recorder of collectives sees its calls
    afterwards = True

    def __init__(self, engine: Any, held: Sequence[RankParameter], device: torch.device, *, may_differ: bool) -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self._held = held
        self._device = device
        #: where a parameter has its local gradient
        self._attribute = "grad_accum" if getattr(self._zero, "use_grad_accum_attribute", False) else "grad"
        self._may_differ = may_differ
        self._watcher: tuple[Sequence[RankParameter], Callable[[], float], BatchObserver, bool] | None = None
        self._step: ExitStack | None = None
        #: ids of the parameters that no rank used in this step
        self.unused: frozenset[int] = frozenset()

    @contextmanager
    def around(self, *, is_last: bool) -> Iterator[None]:
        """As ``DdpReduction.around``."""
        if self._step is None:
            self._step = ExitStack()
            self.unused = frozenset()
            if self._may_differ or self._watcher is not None:
                self._step.enter_context(self._engine.coalesce_grad_reduction())
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield

    def looks_at(self, loss: torch.Tensor) -> None:
        """Nothing: gradients themselves tell which parameters were used."""

    def finish(self) -> None:
        """Reduce what was not reduced while backward ran."""
        assert self._step is not None
        step, self._step = self._step, None
        try:
            if self._watcher is not None:
                self._show(*self._watcher)
            if self._may_differ:
                self._agree()
        finally:
            step.close()

    def _local(self, item: RankParameter) -> torch.Tensor | None:
        found: torch.Tensor | None = getattr(item.parameter, self._attribute)
        return found

    def _show(
        self, items: Sequence[RankParameter], scale: Callable[[], float], observer: BatchObserver, keep: bool
    ) -> None:
        factor = scale()
        parts = [
            GradientPart(item.layer, gradient.clone() if keep else gradient, item.sharded, factor, item)
            for item in items
            if (gradient := self._local(item)) is not None
        ]
        if parts:
            observer(parts)

    def _agree(self) -> None:
        has = [int(self._local(item) is not None) for item in self._held]
        total = torch.tensor(has, dtype=torch.int32, device=self._device)
        all_reduce_uncounted(total)
        unused = set()
        for item, own, count in zip(self._held, has, total.tolist(), strict=True):
            if not count:
                unused.add(id(item.parameter))
            elif not own:
                apart = self._attribute != "grad"
                dtype = self._zero.gradient_accumulation_dtype if apart else item.parameter.dtype
                _set_zeros(item.parameter, self._attribute, dtype)
        self.unused = frozenset(unused)

    @contextmanager
    def watching(
        self, items: Sequence[RankParameter], scale: Callable[[], float], observer: BatchObserver, *, keep: bool
    ) -> Iterator[None]:
        """While entered, ``observer`` is shown the local gradients of a step before they are reduced."""
        self._watcher = (items, scale, observer, keep)
        try:
            yield
        finally:
            self._watcher = None


def _set_zeros(parameter: Any, attribute: str, dtype: torch.dtype) -> None:
    """Give a parameter a gradient of zeros. ZeRO 3 has left it without its elements, and torch wants shapes alike."""
    now = parameter.data
    shape = getattr(parameter, "ds_shape", now.shape)
    parameter.data = now.new_empty(1).expand(shape)
    setattr(parameter, attribute, torch.zeros(shape, dtype=dtype, device=now.device))
    parameter.data = now

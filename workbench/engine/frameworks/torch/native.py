"""What the strategies of plain torch have in common: gradients in ``.grad`` of the parameters that a rank holds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, PartNorms, WeightPart
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.tensor import local_part
from workbench.engine.frameworks.torch.loss_scale import SharedLossScale
from workbench.engine.frameworks.torch_common.gradient_hooks import GradientHooks
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.calls import Number
from workbench.engine.frameworks.torch_common.optimizer_state import weight_part
from workbench.engine.frameworks.torch_common.parameters import ModelNames, RankParameter
from workbench.engine.watch.torch import tensor_statistics as figures

#: first loss scale in fp16; torch's 2**16 skips so many steps that short runs learn less
FIRST_SCALE = 2.0**10
_Loss = TypeVar("_Loss", torch.Tensor, "torch.Tensor | None")


class NativeStrategy(Strategy):
    """``prepare`` of a strategy makes the parts that are named here, and calls ``_begin`` at its end.

    ``_held``: parameters that this rank has a part of; ``_mine``: those whose norms it tells, and ``_shares`` their
    layers. ``_reduction``: reduces gradients, and shows them before.
    """

    device: torch.device
    average: LossAverage
    _module: torch.nn.Module
    _optimizer: torch.optim.Optimizer
    _names: ModelNames
    _hooks: GradientHooks
    _held: list[RankParameter]
    _mine: list[RankParameter]
    _shares: set[tuple[str, str]]
    _reduction: Any

    def _begin(self) -> None:
        self._scaler: Any = self._make_scaler()
        self._clip = self.spec.clip
        self._frozen: frozenset[str] = frozenset()
        self._part_norms: PartNorms | None = None

    def _make_scaler(self) -> Any:
        return SharedLossScale(FIRST_SCALE, enabled=self.spec.precision == "fp16")

    def _end_gradients(self, loss: _Loss) -> _Loss:
        """What follows the reduction of a step's gradients: they are weighed, hooks called, frozen layers left out. The
        loss, weighed alike."""
        factor = self.average.finish()
        if factor is not None:
            torch._foreach_mul_(self._gradients(), factor)
            loss = None if loss is None else loss * factor
        if self._hooks:
            with self.alike("gradient hooks"):
                self._hooks.run(self.loss_scale())
        for item in self._held if self._frozen else ():
            if item.layer in self._frozen:
                item.parameter.grad = None
        return loss

    def _gradients(self) -> list[torch.Tensor]:
        return [local_part(item.parameter.grad) for item in self._held if item.parameter.grad is not None]

    def step(self) -> bool:
        is_scaled = self._scaler.is_enabled()
        norm = self._global_norm() if self._clip > 0 or is_scaled else 0.0
        overflowed = is_scaled and not norm < math.inf
        factor = 1 / self._scaler.get_scale()
        if self._clip > 0 and norm > self._clip:
            factor *= self._clip / (norm + 1e-6)
        if not overflowed:
            if factor != 1:
                torch._foreach_mul_(self._gradients(), factor)
            self._optimizer.step()
        self._scaler.update(overflowed=overflowed)
        self._optimizer.zero_grad()
        return not overflowed

    def _global_norm(self) -> float:
        total = self.grad_sq().clone()
        dist.all_reduce(total)
        return math.sqrt(total.item())

    def skip(self) -> None:
        self._optimizer.zero_grad()

    def grad_sq(self) -> torch.Tensor:
        """As ``Normed.grad_sq``."""
        if self._part_norms is None:
            self._part_norms = figures.part_norms(self._parts(self._mine), self.device)
        return self._part_norms.squared()

    def part_norms(self) -> PartNorms | None:
        """As ``Normed.part_norms``."""
        return self._part_norms

    def set_clip(self, clip: float) -> None:
        """As ``Normed.set_clip``."""
        self._clip = clip

    def loss_scale(self) -> float:
        """As ``LossScaled.loss_scale``."""
        return self._scaler.get_scale()

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``."""
        items = [item for item in self._chosen(self._held, layers) if item.layer not in self._frozen]
        return self._reduction.watching(items, self._parts, self.aside(observer), keep=keep)

    def local_factor(self) -> Number:
        """As ``Watchable.local_factor``."""
        return self.average.factor

    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        """As ``Watchable.reduced_gradients``."""
        return self._parts(self._chosen(self._held if all_held else self._mine, layers))

    def reports(self, layer: str, sharded: str) -> bool:
        """As ``Watchable.reports``."""
        return (layer, sharded) in self._shares

    def compare(self, parts: Sequence[GradientPart]) -> Comparison | None:
        """As ``Watchable.compare``: by now ``p.grad`` is the reduced gradient."""
        return Comparison("exact", [[(part.tensor, part.source.reduced())] for part in parts])

    def layer_sizes(self) -> dict[str, int]:
        """As ``Watchable.layer_sizes``."""
        return self._names.sizes

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""
        return [weight_part(item, item.parameter, self._optimizer) for item in self._chosen(self._mine, layers)]

    @staticmethod
    def _chosen(items: Sequence[RankParameter], layers: Collection[str] | None) -> list[RankParameter]:
        return [item for item in items if layers is None or item.layer in layers]

    def _parts(self, items: Sequence[RankParameter]) -> list[GradientPart]:
        scale = self.loss_scale()
        return [
            GradientPart(item.layer, item.real(item.parameter.grad), item.sharded, scale, item)
            for item in items
            if item.parameter.grad is not None and not item.foreign
        ]

    @property
    def module(self) -> torch.nn.Module:
        """As ``Replayable.module``."""
        return self._module

    def generators(self) -> Mapping[str, ModuleGenerator]:
        """As ``Replayable.generators``: torch keeps none in modules."""
        return {}

    def layers(self) -> list[str]:
        """As ``Freezable.layers``."""
        return self._names.layers

    def set_frozen(self, layers: Collection[str]) -> None:
        """As ``Freezable.set_frozen``."""
        self._frozen = frozenset(layers)

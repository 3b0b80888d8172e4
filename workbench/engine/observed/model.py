"""A model that somebody else's loop trains, as those who watch gradients see it.

What can be seen depends on how the model is wrapped (``seen_of``):

- not wrapped, one rank: gradients and weights;
- ``DistributedDataParallel``: the local gradients, before they are reduced, too;
- ``fully_shard`` (FSDP2) and ``FullyShardedDataParallel``: this rank's shards of the reduced gradients and of weights;
- not wrapped, several ranks: gradients as the optimizer takes them, which are taken for those of replicas;
- DeepSpeed's engine: in float32 without ZeRO as replicas, or as stages of a pipeline; with ZeRO, and in half precision,
  it tells the global norm, and its own copies of gradients are not seen;
- Megatron's DDP, where each rank has the whole model: the gradients in its buffers, before and after reduction.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

from workbench.core.config import TrainSpec
from workbench.core.mesh import Coordinates
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, PartNorms, WeightPart
from workbench.engine.base.strategy import PlannedRank
from workbench.engine.base.tensor import is_sharded, local_part
from workbench.engine.frameworks.megatron.buffers import GradientBuffers
from workbench.engine.frameworks.torch_common.local_gradients import before_ddp_reduces
from workbench.engine.frameworks.torch_common.optimizer_state import weight_part
from workbench.engine.frameworks.torch_common.parameters import (
    ModelNames,
    RankParameter,
    rank_parameters,
    share_of_replicas,
)
from workbench.engine.observed.deepspeed import DeepSpeedEngine
from workbench.engine.observed.engine import Engine
from workbench.engine.observed.megatron import MegatronEngine
from workbench.engine.watch.torch import tensor_statistics as figures
from workbench.errors import ConfigError

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be seen of a wrapped model. ``kind``: how it is wrapped, the plan's plugin. ``unseen``: what cannot be
    seen, as a sentence; "" when everything can. ``gradients``: whether ``.grad`` holds the reduced ones."""

    kind: str
    unseen: str = ""
    gradients: bool = True


def in_process(kind: type[Kind]) -> list[Kind]:
    """The living objects of a class."""
    return [found for found in gc.get_objects() if issubclass(type(found), kind)]


def wrapper_of(model: torch.nn.Module) -> torch.nn.Module:
    """The ``DistributedDataParallel`` around ``model`` where there is one; else ``model``."""
    if isinstance(model, DistributedDataParallel):
        return model
    return next((ddp for ddp in in_process(DistributedDataParallel) if ddp.module is model), model)


def engine_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: int) -> Engine | None:
    """The engine around ``model``, whose weights ``optimizer`` updates, on ``ranks`` ranks; None: there is none."""
    return DeepSpeedEngine.of(model, ranks) or MegatronEngine.of(model, optimizer)


def seen_of(model: torch.nn.Module, engine: Engine | None, ranks: int) -> Seen:
    """What can be seen of ``model``, as the loop calls it, on ``ranks`` ranks."""
    if engine is not None:
        return Seen(engine.kind, engine.unseen, gradients=engine.has_gradients)
    if isinstance(model, DistributedDataParallel):
        in_place = "gradient_as_bucket_view=True lets DDP reduce in place: local gradients are not seen"
        return Seen("ddp", in_place if model.gradient_as_bucket_view else "")
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    if any(is_sharded(parameter) for parameter in model.parameters()) or any("fsdp" in name for name in names):
        return Seen("fsdp", "FSDP reduces whole gradients before they can be seen: local gradients are not seen")
    why = (
        "the model is in no DistributedDataParallel: gradients are seen when the optimizer takes them, and are taken "
        "for those of replicas"
    )
    return Seen("replicas", why) if ranks > 1 else Seen("single")


class _UpdatesAll:
    """Stands for an optimizer whose parameters are partitions: it updates all of the model that is trained."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]


class ObservedModel(PlannedRank):
    """``Normed`` and ``Watchable`` for a model whose gradients are in ``.grad``, or in the buffers of its ``engine``.
    ``scale``: what the loss of a backward pass is multiplied by (a ``GradScaler``)."""

    def __init__(
        self,
        spec: TrainSpec,
        rank: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        engine: Engine | None,
        scale: Callable[[], float],
    ) -> None:
        super().__init__(spec, rank)
        self.wrapper = model
        self.optimizer = optimizer
        self.engine = engine
        self.seen = seen_of(model, engine, spec.plan.ranks)
        self._ddp = model if isinstance(model, DistributedDataParallel) else None
        self._buffers = engine.buffers if isinstance(engine, MegatronEngine) else None
        if self.engine is not None and self.engine.stages > 1:
            dp, pp = self.engine.place
            self.coordinates = Coordinates(dp=dp, pp=pp, tp=0)
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        self.model: torch.nn.Module = inner if self.engine is None else self.engine.module
        self._scale = scale
        self._part_norms: PartNorms | None = None
        self.choose(optimizer)
        first = next(iter(inner.parameters()), None)
        self.device = torch.device("cpu") if first is None else first.device

    def choose(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch what ``optimizer`` updates. ``ConfigError`` when that is nothing of the model."""
        partitioned = self.engine is not None and self.engine.weights_of is None
        names = ModelNames(self.model, _UpdatesAll(self.model) if partitioned else optimizer)
        held = rank_parameters(self.model, names)
        if not held:
            raise ConfigError(
                f"the optimizer updates no parameter of {type(self.model).__name__}: create it from "
                "model.parameters() of the model that is observed"
            )
        self.optimizer = optimizer
        self._names, self._rank_parameters = names, held
        turns = {layer: turn for turn, layer in enumerate(names.layers)}
        is_split = self.seen.kind == "fsdp" or bool(self.sharded)
        self._mine = held if is_split else share_of_replicas(held, turns, self.mesh, self.coordinates)
        self._shares = {(item.layer, item.sharded) for item in self._mine}
        self.ids = frozenset(id(item.parameter) for item in held)

    def are_all(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Whether the gradients of ``parameters``, and no others, are those of the whole model on this rank."""
        given = {id(parameter) for parameter in parameters if parameter.grad is not None}
        held = {id(item.parameter) for item in self._rank_parameters if item.parameter.grad is not None}
        return self.seen.gradients and self._buffers is None and self.seen.kind != "fsdp" and given == held

    def begin(self) -> None:
        """A step begins: the norms of the last one are forgotten."""
        self._part_norms = None

    def grad_sq(self) -> torch.Tensor:
        """As ``Normed.grad_sq``."""
        if self._part_norms is None:
            self._part_norms = figures.part_norms(self._parts(self._mine), self.device)
        return self._part_norms.squared()

    def part_norms(self) -> PartNorms | None:
        """As ``Normed.part_norms``."""
        return self._part_norms

    def set_clip(self, clip: float) -> None:
        """As ``Normed.set_clip``; the loop clips by itself."""
        raise ConfigError("clip: the loop is the script's own, which clips by itself")

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``."""
        ddp = self._ddp
        items = self._chosen(self._rank_parameters, layers)
        show = self.aside(observer)
        if isinstance(self.engine, MegatronEngine) and self.engine.has_local:
            return self._watch_buffers(items, show, keep=keep)
        if ddp is None or self.seen.unseen:
            return nullcontext()
        return before_ddp_reduces(
            items, self._local, show, keep=keep, is_last=lambda: bool(ddp.require_backward_grad_sync)
        )

    def _watch_buffers(
        self, items: Sequence[RankParameter], show: BatchObserver, *, keep: bool
    ) -> AbstractContextManager[None]:
        assert self._buffers is not None
        buffers = self._buffers

        def look(parameters: Collection[torch.Tensor]) -> None:
            reduced = [item for item in items if item.parameter in parameters]
            found = [(item, buffers.local(item.parameter)) for item in reduced]
            parts = self._made([(item, local) for item, local in found], self._scale(), "")
            if keep:
                parts = [replace(part, tensor=part.tensor.clone()) for part in parts]
            if parts:
                show(parts)

        return buffers.before_reduction(look)

    def local_factor(self) -> float:
        """As ``Watchable.local_factor``: DDP takes the mean."""
        return 1.0

    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        """As ``Watchable.reduced_gradients``."""
        return self._parts(self._chosen(self._rank_parameters if all_held else self._mine, layers))

    def reports(self, layer: str, sharded: str) -> bool:
        """As ``Watchable.reports``."""
        return any(layer == mine for mine, _ in self._shares)

    def compare(self, parts: Sequence[GradientPart]) -> Comparison:
        """As ``Watchable.compare``."""
        if self._buffers is not None:
            pairs = [[self._pair(part, self._buffers)] for part in parts]
            return Comparison("slice" if self._buffers.is_split else "exact", pairs)
        return Comparison("exact", [[(part.tensor, part.source.reduced())] for part in parts])

    @staticmethod
    def _pair(part: GradientPart, buffers: GradientBuffers) -> tuple[torch.Tensor, torch.Tensor]:
        reduced = buffers.reduced(part.source.parameter)
        assert reduced is not None  # there was a local one
        if buffers.is_split:
            return buffers.own(part.source.parameter, part.tensor), reduced
        return part.tensor, part.source.real(reduced)

    def layer_sizes(self) -> dict[str, int]:
        """As ``Watchable.layer_sizes``."""
        return self._names.sizes

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""
        if self.seen.kind == "fsdp" or (self.engine is not None and self.engine.weights_of is None):
            return []
        chosen = self._chosen(self._mine, layers)
        return [weight_part(item, item.parameter, self.optimizer) for item in chosen]

    def reducer(self) -> DistributedDataParallel | None:
        """As ``DdpReduced.reducer``."""
        return self._ddp

    @property
    def sharded(self) -> str:
        """The axes over which the reduced gradients of a rank are split."""
        if self.engine is not None:
            return self.engine.sharded
        return "dp" if self.seen.kind == "fsdp" and self.mesh.dp > 1 else ""

    def _local(self, items: Sequence[RankParameter]) -> list[GradientPart]:
        return self._made([(item, item.parameter.grad) for item in items], self._scale(), self.sharded)

    @staticmethod
    def _chosen(items: Sequence[RankParameter], layers: Collection[str] | None) -> list[RankParameter]:
        return [item for item in items if layers is None or item.layer in layers]

    def _parts(self, items: Sequence[RankParameter]) -> list[GradientPart]:
        """The reduced gradients."""
        if self._buffers is None:
            return self._made([(item, item.parameter.grad) for item in items], 1.0, self.sharded)
        found = [(item, self._buffers.reduced(item.parameter)) for item in items]
        return self._made(found, self._scale(), self.sharded)

    @staticmethod
    def _made(
        found: Sequence[tuple[RankParameter, torch.Tensor | None]], scale: float, sharded: str
    ) -> list[GradientPart]:
        parts = []
        for item, gradient in found:
            if gradient is not None:
                real = local_part(gradient) if sharded else item.real(local_part(gradient))
                parts.append(GradientPart(item.layer, real, sharded, scale, item))
        return parts

"""Colossal-AI's Gemini: weights, gradients and optimizer state in chunks, of which each rank holds a slice.

A chunk is gathered by hooks of the single operations that use its weights. Its gradient, in a chunk of its own so that
pieces of a batch can be added up, is reduced and cut into slices while backward runs. The optimizer updates fp32 copies
of the slices.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, WeightMatrix, WeightPart
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.colossal.local_gradients import SummedPieces
from workbench.engine.frameworks.colossal.module_state import ScalerState
from workbench.engine.frameworks.colossal.plugin import MeshPlan, Wanted, record_skips
from workbench.engine.frameworks.torch_common.autograd_graph import graph_of
from workbench.engine.frameworks.torch_common.losses.whole_model import AUTOCAST_TYPES
from workbench.engine.frameworks.torch_common.optimizer_state import moments_of
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.engine.state.layout import LossScaler, Place, RankState, Slot, Target, whole_buffers
from workbench.errors import ConfigError

#: chunks of at most so many millions (2**20) of elements, Gemini's default; of a smaller model, an eighth of it, so
#: that it is cut at all: Gemini keeps a model below one chunk whole on every rank
_CHUNK_MILLIONS = 32.0
_CHUNKS = 8


@dataclass(frozen=True)
class ChunkSlice:
    """What this rank holds of a parameter: the elements ``begin`` to ``end`` of its slice of ``chunk``, which are those
    from ``first`` on of the flattened parameter. ``key``: the tensor that the optimizer updates; None where it holds
    none of it."""

    chunk: Any
    begin: int
    end: int
    first: int
    key: torch.nn.Parameter | None

    def __len__(self) -> int:
        return self.end - self.begin

    def of(self, chunk: Any) -> torch.Tensor:
        """The elements in ``chunk``, which is cut as the parameter's own one is."""
        return chunk.payload[self.begin : self.end]

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The elements of a tensor that is shaped like the parameter."""
        return whole.reshape(-1)[self.first : self.first + len(self)]


class GeminiPlan(MeshPlan):
    """GeminiPlugin in bf16 or fp16, with static or automatic placement."""

    masters_are_slices = True

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import GeminiPlugin

        millions = sum(self.names.sizes.values()) / 2**20
        is_gpu = self.device.type == "cuda"
        return GeminiPlugin(
            placement_policy=self.spec.plan.placement,
            offload_optim_frac=1.0 if self.spec.plan.offload else 0.0,
            enable_gradient_accumulation=True,
            precision=self.spec.precision,
            search_range_m=min(_CHUNK_MILLIONS, millions),
            min_chunk_size_m=min(_CHUNK_MILLIONS, millions / _CHUNKS),
            initial_scale=self.initial_scale,
            pin_memory=is_gpu,
            enable_async_reduce=is_gpu,
        )

    @torch.no_grad()
    def boost(self, workload: Workload) -> None:
        from colossalai.zero.gemini import gemini_optimizer

        module = trained(workload)
        before = {name: each.detach().float().clone() for name, each in module.named_parameters() if each.requires_grad}
        kind = type(workload.optimizer)
        # its list of optimizers is of those whose step takes a divisor: here gradients are divided before
        is_new = kind not in gemini_optimizer._AVAIL_OPTIM_LIST
        gemini_optimizer._AVAIL_OPTIM_LIST.add(kind)
        try:
            super().boost(workload)
        finally:
            if is_new:
                gemini_optimizer._AVAIL_OPTIM_LIST.discard(kind)
        for name, parameter in self.module.named_parameters():
            if name in before:  # upstream's copies are made of weights that were rounded
                self.masters()[id(parameter)].copy_(self._slices[id(parameter)].cut(before[name]))
        self._frozen: frozenset[str] = frozenset()
        self._pieces: SummedPieces | None = None
        self._wanted: frozenset[int] = frozenset()
        self._is_last_piece = True
        self._entered = False
        self._set_pointers = self.optimizer._set_grad_ptr
        own = weakref.proxy(self)
        self.optimizer._set_grad_ptr = own.point_at_gradients
        step = self._update = self.optimizer.optim.step
        self.optimizer.optim.step = functools.wraps(step)(functools.partial(step_divided, self.optimizer.optim, step))
        for item in self.held:
            hooks: Any = item.parameter._backward_hooks
            later = dict(hooks)  # Gemini's own, which takes the gradient away
            hooks.clear()
            item.parameter.register_hook(functools.partial(_look, own, item))
            hooks.update(later)
        if self.spec.precision == "fp16":
            record_skips(self, self.optimizer.mix_precision_mixin)

    def convert(self) -> Callable[[Any], Any]:
        dtype = AUTOCAST_TYPES[self.spec.precision]
        return lambda leaf: leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    @functools.cached_property
    def _slices(self) -> dict[int, ChunkSlice]:
        numbers = {id(parameter): number for number, parameter in self.optimizer.id_to_real_params.items()}
        found = {}
        for parameter in self.model.fp16_params:
            chunk = self.model.chunk_manager.get_chunk(parameter)
            place = chunk.tensors_info[parameter]
            start, size = int(chunk.shard_begin), int(chunk.shard_size)  # else of NumPy
            begin = min(max(0, place.offset - start), size)
            end = max(begin, min(size, place.end - start))
            first = min(max(0, begin + start - place.offset), parameter.numel())
            key = self.optimizer.id_to_fake_params.get(numbers.get(id(parameter), -1))
            found[id(parameter)] = ChunkSlice(chunk, begin, end, first, key)
        return found

    def masters(self) -> Mapping[Any, torch.Tensor]:
        return {key: part.of(part.chunk.paired_chunk) for key, part in self._slices.items()}

    def backward(self, loss: torch.Tensor) -> None:
        if not self.spec.recipe:
            self._check_all_used(loss)
        super().backward(loss)

    def _check_all_used(self, loss: torch.Tensor) -> None:
        leaves = graph_of(loss).leaves
        unused = [item.layer for item in self.held if id(item.parameter) not in leaves]
        if unused:
            raise ConfigError(
                f"{', '.join(dict.fromkeys(unused))} took no part in the loss of a batch, and --plugin gemini reduces "
                "the gradients of all weights in each step: use --plugin zero2, or --framework torch --plugin fsdp",
                field="--plugin",
            )

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Each piece is reduced, and added to this rank's slices."""
        self._is_last_piece = False
        try:
            yield
        finally:
            self._is_last_piece = True

    def _gradient(self, item: RankParameter) -> torch.Tensor | None:
        """This rank's slice of a reduced gradient."""
        part = self._slices[id(item.parameter)]
        return None if part.chunk.grad_chunk is None else part.of(part.chunk.grad_chunk)

    def scale_gradients(self, factor: Any) -> None:
        for chunk in {id(part.chunk): part.chunk for part in self._slices.values()}.values():
            chunk.grad_chunk.payload.mul_(factor)

    def loss_scale(self) -> float:
        return self.optimizer.mix_precision_mixin.loss_scale if self.spec.precision == "fp16" else 1.0

    def scaler_of(self) -> LossScaler | None:
        is_fp16 = self.spec.precision == "fp16"
        return ScalerState(self.optimizer.mix_precision_mixin.grad_scaler) if is_fp16 else None

    def drop_gradients(self, layers: Collection[str]) -> None:
        self._frozen = frozenset(layers)

    def point_at_gradients(self) -> None:
        """Let the optimizer see the slices, and no gradient of frozen layers."""
        self._set_pointers()
        for item in self.held if self._frozen else ():
            key = self._slices[id(item.parameter)].key
            if key is not None and item.layer in self._frozen:
                key.grad = None

    @contextmanager
    def watching(self, show: BatchObserver, wanted: Wanted, keep: bool) -> Iterator[None]:
        self._wanted = frozenset(id(item.parameter) for item in self.wanted(wanted))
        self._pieces = pieces = SummedPieces(show, lambda: self._is_last_piece)
        try:
            yield
            pieces.finish()
        finally:
            self._pieces = None

    def look(self, item: RankParameter, gradient: torch.Tensor) -> None:
        """Show the observer a local gradient, with those of earlier pieces added."""
        if self._pieces is not None and id(item.parameter) in self._wanted:
            self._pieces.take([GradientPart(item.layer, item.real(gradient), "", self.loss_scale(), item)])

    def reduced(self, wanted: Wanted = None, *, all_held: bool = False) -> list[GradientPart]:
        scale, sharded = self.loss_scale(), self._sharded
        pairs = [(item, self._gradient(item)) for item in self.wanted(wanted) if item.layer not in self._frozen]
        return [
            GradientPart(item.layer, gradient.to(self.device), sharded, scale, item)
            for item, gradient in pairs
            if gradient is not None
        ]

    @property
    def _sharded(self) -> str:
        return "dp" if self.mesh.dp > 1 else ""

    def reports(self, layer: str, sharded: str) -> bool:
        return True

    def compare(self, parts: Sequence[GradientPart]) -> Comparison:
        """This rank has its slice of the reduced gradient."""
        pairs = []
        for part in parts:
            gradient = self._gradient(part.source)
            if gradient is not None:
                pairs.append([(self._slices[id(part.source.parameter)].cut(part.tensor), gradient.to(self.device))])
        return Comparison("exact" if self.mesh.dp == 1 else "slice", pairs)

    def weights(self, wanted: Wanted = None) -> list[WeightPart]:
        found, masters = [], self.masters()
        for item in self.wanted(wanted):
            key = self._slices[id(item.parameter)].key
            moments = (None, None) if key is None else moments_of(self.optimizer.optim, key)
            found.append(WeightPart(item.layer, masters[id(item.parameter)], self._sharded, moments))
        return found

    def matrices(self) -> list[WeightMatrix]:
        with self.gathered():
            found = super().matrices()
            return [replace(each, matrix=each.matrix.clone()) for each in found]

    def step(self, global_norm: float | None) -> bool:
        self.skipped = False
        self.optimizer.clipping_flag = global_norm is not None
        self.optimizer.max_norm = self.clip
        scale = self.loss_scale()
        self.optimizer._calc_global_norm = lambda: (global_norm or 0.0) * scale
        self.framework_norm = math.nan
        self.optimizer.step()
        self.model.chunk_manager.accumulating_grads = False  # upstream leaves it set where it skips the step
        return not self.skipped

    def skip(self) -> None:
        self.optimizer.zero_grad()
        self.model.chunk_manager.accumulating_grads = False

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """As ``Gathering.gathered``."""
        if self._entered:
            yield
            return
        manager = self.model.chunk_manager
        chunks = list(manager.get_chunks(self.model.fp16_params))
        hooks = [(item.parameter, dict(item.parameter._backward_hooks or {})) for item in self.held]
        self._entered = True
        try:
            for chunk in chunks:
                manager.access_chunk(chunk)
            for parameter, _ in hooks:
                parameter._backward_hooks.clear()  # type: ignore[union-attr]
            yield
        finally:
            for parameter, own in hooks:
                parameter._backward_hooks.update(own)  # type: ignore[union-attr]
            for chunk in chunks:
                manager.release_chunk(chunk)
            self._entered = False

    def rank_state(self) -> RankState:
        return RankState(
            slots=[self._slot(self.originals.name(name), each) for name, each in self.module.named_parameters()],
            buffers=whole_buffers(self.module),
            saves_buffers=self.here.dp == 0,
            optimizer=self.optimizer.optim,
            tied=self.originals.tied,
            generators=self.generators,
            scaler=self.scaler_of(),
        )

    def _slot(self, name: str, parameter: torch.nn.Parameter) -> Slot:
        shape, part = self.originals.shapes[name], self._slices.get(id(parameter))
        if part is None:  # not trained, and whole on every rank
            mine = self.originals.order[name] % self.mesh.dp == self.here.dp
            rows = shape[0] if shape else 1
            return Slot(name, Target(parameter.detach(), Place.whole(shape)), (), parameter, rows, mine)
        master, working = part.of(part.chunk.paired_chunk), part.of(part.chunk)
        place = Place(shape, None, ((part.first, len(part)),))
        key = part.key
        if key is not None:
            key.data = master  # between steps upstream leaves it empty
        saved = Target(master, place)
        return Slot(name, saved, (Target(working, place),), master if key is None else key, len(part), len(part) > 0)

    def close(self) -> None:
        self.optimizer.optim.step = self._update
        super().close()


def _look(plan: GeminiPlan, item: RankParameter, gradient: torch.Tensor) -> None:
    plan.look(item, gradient)


def step_divided(optimizer: Any, step: Callable[..., Any], *args: Any, div_scale: float = -1.0, **kwargs: Any) -> Any:
    """``step`` with gradients in fp32, divided: HybridAdam divides none that are bf16 (hybrid_adam.py:126)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                parameter.grad = gradient / div_scale if div_scale > 0 else gradient
    return step(*args, **kwargs)

"""What each module of a model does in one forward pass: bytes that it keeps for the backward pass, operations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in, split
from workbench.engine.frameworks.torch_common.batches import call_model
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.planner.model import Activity

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's registry lacks it
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class _Seen:
    """Of one forward pass, by module."""

    saved: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    trains: dict[str, bool] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operations: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    moved: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class _Counter(TorchDispatchMode):
    """Counts operators, their floating point operations, and the bytes that the others read and write, for the module
    that runs."""

    def __init__(self, seen: _Seen, running: list[str]) -> None:
        super().__init__()
        self._seen, self._running = seen, running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        module = self._running[-1]
        self._seen.operations[module] += 1
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self._seen.flops[module] += count(*args, **(kwargs or {}), out_val=out)
        elif func._overloadpacket is _CPU_ATTENTION:
            self._seen.flops[module] += sdpa_flop_count(*(each.shape for each in args[:3]))
        else:
            read, written = _tensors((args, kwargs)), _tensors(out)
            if not {_storage(each) for each in written} <= {_storage(each) for each in read}:  # no view
                self._seen.moved[module] += sum(_bytes(each) for each in (*read, *written))
        return out


def operations_of(forward: Callable[[], object]) -> int:
    """How many operators a function calls."""
    seen = _Seen()
    with _Counter(seen, [""]):
        forward()
    return seen.operations[""]


def measure(workload: Workload, batch: Batch, mode: str, precision: str) -> tuple[Activity, ...]:
    """Run one forward pass with a few samples of ``batch`` and one with twice as many, and tell what is fixed in them
    from what grows with a sample.

    ``mode``: "autocast" or "cast", what ``precision`` does to the model (``Shares.casts``). The passes compute shapes
    only, without memory; a model whose code looks at values is run for real. Raises what the model's code raises.
    """
    samples = samples_in(batch)
    small, large = (split(batch, max(1, samples // count))[0] for count in (2, 4))
    try:
        found = [_shapes_only(workload, piece, mode, precision) for piece in (small, large)]
    except Exception:  # whatever user code does with values that are not there: the real pass tells
        if any(parameter.is_meta for parameter in workload.model.parameters()):
            raise
        found = [_for_real(workload, piece, mode, precision) for piece in (small, large)]
    few, many = samples_in(small), samples_in(large)
    names = dict.fromkeys(users_name(name) for name, _ in workload.model.named_modules())
    return tuple(_activity(name, found[0], found[1], few, many) for name in names if _does_something(name, found[1]))


def _does_something(name: str, seen: _Seen) -> bool:
    return bool(seen.saved.get(name) or seen.outputs.get(name) or seen.operations.get(name))


def _activity(name: str, first: _Seen, second: _Seen, few: int, many: int) -> Activity:
    a, b = first.saved.get(name, 0), second.saved.get(name, 0)
    each = (b - a) / (many - few) if many > few else b / many
    return Activity(
        module=name,
        saved_fixed=max(0.0, b - each * many),
        saved_per_sample=each,
        input_bytes=second.inputs.get(name, 0) / many,
        output_bytes=second.outputs.get(name, 0) / many,
        input_trains=second.trains.get(name, True),
        flops=second.flops.get(name, 0.0) / many,
        operations=second.operations.get(name, 0),
        moved_bytes=second.moved.get(name, 0) / many,
    )


def _shapes_only(workload: Workload, piece: Batch, mode: str, precision: str) -> _Seen:
    model, device = workload.model, rank_device()
    half = HALF.get(precision) if mode == "cast" else None

    def shaped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = half if half is not None and value.is_floating_point() else value.dtype
        return torch.empty(value.shape, dtype=dtype, device=device)

    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {
            name: shaped(value).requires_grad_(value.requires_grad) for name, value in model.named_parameters()
        } | {name: shaped(value) for name, value in model.named_buffers()}
        batch = tree_map(shaped, contents(piece))
        with _reparametrize_module(model, tensors, tie_weights=True):
            return _forward(workload, batch, list(tensors.values()), mode, precision)


def _for_real(workload: Workload, piece: Batch, mode: str, precision: str) -> _Seen:
    model, device = workload.model, rank_device()
    half = HALF.get(precision) if mode == "cast" else None
    model.to(device)

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, dtype=half if half is not None and value.is_floating_point() else None)

    batch = tree_map(placed, contents(piece))
    if half is None:
        return _forward(workload, batch, [*model.parameters(), *model.buffers()], mode, precision)
    tensors: dict[str, Any] = {
        name: placed(value.detach()).requires_grad_(value.requires_grad) for name, value in model.named_parameters()
    }
    tensors |= {name: placed(value) for name, value in model.named_buffers()}
    with _reparametrize_module(model, tensors, tie_weights=True):
        return _forward(workload, batch, list(tensors.values()), mode, precision)


def _forward(workload: Workload, batch: Any, own: list[torch.Tensor], mode: str, precision: str) -> _Seen:
    seen, running = _Seen(), [""]
    known = {_storage(tensor) for tensor in [*own, *_tensors(batch)]}
    kept: list[torch.Tensor] = []  # so that no storage is used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = _storage(tensor)
        if place not in known:
            known.add(place)
            kept.append(tensor)
            seen.saved[running[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    half = HALF.get(precision) if mode == "autocast" else None
    autocast = nullcontext() if half is None else torch.autocast(rank_device().type, dtype=half)
    with (
        _modules_followed(workload.model, seen, running),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast,
        _Counter(seen, running),
    ):
        _loss(workload, batch)
    return seen


def _loss(workload: Workload, batch: Any) -> Any:
    if workload.loss_fn is not None:
        return workload.loss_fn(workload.model, batch)
    outputs = call_model(workload.model, batch)
    return outputs if workload.criterion is None else workload.criterion(outputs, batch)


@contextmanager
def _modules_followed(model: torch.nn.Module, seen: _Seen, running: list[str]) -> Iterator[None]:
    """Keep the name of the module that runs at the end of ``running``, and note its inputs and outputs."""

    def hooks(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(_module: Any, args: Any, kwargs: Any) -> None:
            running.append(name)
            first = next(iter(_tensors((args, kwargs))), None)
            if first is not None:
                seen.inputs[name] = _bytes(first)
                seen.trains[name] = first.requires_grad

        def after(_module: Any, _args: Any, outputs: Any) -> None:
            running.pop()
            first = next(iter(_tensors(outputs)), None)
            if first is not None:
                seen.outputs[name] = _bytes(first)

        return before, after

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                before, after = hooks(users_name(name))
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
        yield


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)

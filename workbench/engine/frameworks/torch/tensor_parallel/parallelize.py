"""Cuts the layers of a model over tensor-parallel ranks: their weights become DTensors, outputs stay plain tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from workbench.engine.frameworks.torch.tensor_parallel.plan import TensorPlan, is_conv1d
from workbench.engine.state.layout import Runs

#: styles whose outputs stay with the rank
_KEPT = ("colwise", "fused", "features")


@dataclass(frozen=True, slots=True)
class Cut:
    """What a rank has of a parameter: ``runs`` (first, length) along ``dim`` of the whole one."""

    dim: int
    runs: Runs


def parallelize(model: torch.nn.Module, plan: TensorPlan, mesh: DeviceMesh) -> dict[str, Cut]:
    """Cut ``model`` in place by ``plan`` over the ranks of ``mesh`` (one axis); returns what this rank has of the
    parameters that were cut, by name. A bias that is added after the sum over ranks is whole, and not among them."""
    ranks, rank = mesh.size(), mesh.get_local_rank()
    cuts: dict[str, Cut] = {}
    for name, (module, style) in plan.modules.items():
        if style == "shared":
            _add_up_gradients(module, mesh.get_group())
            continue
        for parameter_name, parameter in list(module.named_parameters(recurse=False)):
            dim = dim_of(module, parameter_name, style)
            if dim is None:
                _replace(module, parameter_name, distribute_tensor(parameter.detach(), mesh, [Replicate()]))
                continue
            runs = [_runs(parameter.shape[dim], each, ranks, fused=style == "fused") for each in range(ranks)]
            cuts[f"{name}.{parameter_name}"] = Cut(dim, runs[rank])
            order = [first + i for own in runs for first, length in own for i in range(length)]
            whole = (
                parameter.detach().index_select(dim, torch.tensor(order)) if style == "fused" else parameter.detach()
            )
            _replace(module, parameter_name, distribute_tensor(whole, mesh, [Shard(dim)]))
        if style == "vocabulary" and module.weight.requires_grad:  # torch's embedding gives the whole gradient
            module.weight.register_hook(lambda gradient: gradient.redistribute(placements=[Shard(0)]))  # type: ignore[operator]
        _exchange(module, style, mesh)
        vars(module)["_output_sharding"] = "tp" if style in _KEPT else ""
    for module, attribute in plan.counts:
        if hasattr(module, attribute):
            setattr(module, attribute, getattr(module, attribute) // ranks)
    for module, argument in plan.arguments:
        module.register_forward_pre_hook(partial(_own_heads, argument, mesh), with_kwargs=True)
    return cuts


def output_sharding(module: torch.nn.Module) -> str | None:
    """As ``Inspectable.output_sharding``: "tp" or "" for a layer that was cut, None for any other module."""
    return getattr(module, "_output_sharding", None)


def dim_of(module: torch.nn.Module, parameter: str, style: str) -> int | None:
    """The dim along which a parameter is cut; None: it is whole on every rank."""
    if style == "shared":
        return None
    if style in ("vocabulary", "features"):
        return int(style == "features")
    outputs, inputs = (1, 0) if is_conv1d(module) else (0, 1)
    if style == "rowwise":
        return inputs if parameter == "weight" else None
    return outputs if parameter == "weight" else 0


def _runs(size: int, rank: int, ranks: int, *, fused: bool) -> Runs:
    parts = 3 if fused else 1
    length = size // parts // ranks
    return tuple((part * (size // parts) + rank * length, length) for part in range(parts))


def _replace(module: torch.nn.Module, name: str, tensor: DTensor) -> None:
    before = getattr(module, name)
    setattr(module, name, torch.nn.Parameter(tensor, requires_grad=before.requires_grad))


def _exchange(module: torch.nn.Module, style: str, mesh: DeviceMesh) -> None:
    """Let ``module`` compute with DTensors: plain inputs become such, and the output plain again.

    Its ``forward`` is replaced, so that hooks of others see plain tensors only.
    """
    given: Placement = Shard(-1) if style == "rowwise" else Replicate()
    compute = module.forward

    def forward(values: torch.Tensor) -> torch.Tensor:
        output = compute(DTensor.from_local(values, mesh, [given], run_check=False))
        if style in _KEPT:
            return output.redistribute(placements=[Shard(output.dim() - 1)]).to_local()
        # a model may add to it in place, as Falcon does, which autograd refuses for a view made by a Function
        return output.redistribute(placements=[Replicate()]).to_local().clone()

    vars(module)["forward"] = forward


class _AddUpGradient(torch.autograd.Function):
    """The tensor itself; its gradient is the sum over the ranks of a group."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _add_up_gradients(module: torch.nn.Module, group: dist.ProcessGroup) -> None:
    """Let the gradients of a layer that each rank applies to values of its own be those of all values."""
    compute = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        own: dict[str, Any] = dict(module._parameters)
        try:
            for name, parameter in own.items():
                if parameter is not None:
                    module._parameters[name] = _AddUpGradient.apply(parameter, group)  # type: ignore[assignment]
            return compute(*args, **kwargs)
        finally:
            module._parameters.update(own)

    vars(module)["forward"] = forward


def _own_heads(
    argument: str, mesh: DeviceMesh, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Leave, of an argument [batch x all heads, ...], what belongs to the ``num_heads`` of this rank."""
    whole: torch.Tensor = kwargs[argument]
    heads: int = module.num_heads  # type: ignore[assignment]
    by_sample = whole.unflatten(0, (-1, heads * mesh.size()))
    own = by_sample.narrow(1, mesh.get_local_rank() * heads, heads).flatten(0, 1)
    return args, {**kwargs, argument: own}

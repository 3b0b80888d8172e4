"""Cuts the layers of a model over tensor-parallel ranks: their weights become DTensors, outputs stay plain tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from workbench.engine.frameworks.torch.tensor_parallel.plan import TensorPlan, is_conv1d
from workbench.engine.state.layout import Runs

#: styles whose outputs stay with the rank
_KEPT = ("colwise", "fused")


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
        for parameter_name, parameter in list(module.named_parameters(recurse=False)):
            dim = _dim(module, parameter_name, style)
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
        _exchange(module, style, mesh)
        vars(module)["_output_sharding"] = "tp" if style in _KEPT else ""
    for module, attribute in plan.counts:
        if hasattr(module, attribute):
            setattr(module, attribute, getattr(module, attribute) // ranks)
    return cuts


def output_sharding(module: torch.nn.Module) -> str | None:
    """As ``Inspectable.output_sharding``: "tp" or "" for a layer that was cut, None for any other module."""
    return getattr(module, "_output_sharding", None)


def _dim(module: torch.nn.Module, parameter: str, style: str) -> int | None:
    """The dim along which a parameter is cut; None: it is whole on every rank."""
    if style == "vocabulary":
        return 0
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
        wanted = Shard(output.dim() - 1) if style in _KEPT else Replicate()
        return output.redistribute(placements=[wanted]).to_local()

    vars(module)["forward"] = forward

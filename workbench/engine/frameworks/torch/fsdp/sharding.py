"""Shards a model with FSDP2's ``fully_shard``: each repeated block by itself, and the rest as one group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from workbench.engine.base.tensor import local_part
from workbench.engine.frameworks.torch_common.losses.whole_model import AUTOCAST_TYPES


def blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated blocks of a model: entries of the outermost ``ModuleList`` that have one class and parameters of
    their own.

    A list that holds a weight which another module uses too is left to the rest of the model, as are lists inside a
    compiled module, whose graph calls no hook of theirs.
    """
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found: list[torch.nn.Module] = []
    _collect_blocks(model, uses, found)
    return found


def _collect_blocks(module: torch.nn.Module, uses: dict[int, int], found: list[torch.nn.Module]) -> None:
    if hasattr(module, "_orig_mod"):
        return
    entries = list(module) if isinstance(module, torch.nn.ModuleList) else []
    if len(entries) > 1 and len({type(entry) for entry in entries}) == 1:
        parameters = [list(entry.parameters()) for entry in entries]
        if all(own and all(uses[id(parameter)] == 1 for parameter in own) for own in parameters):
            found += entries
            return
    for child in module.children():
        _collect_blocks(child, uses, found)


def shard(
    module: torch.nn.Module,
    blocks: list[torch.nn.Module],
    mesh: DeviceMesh,
    *,
    precision: str,
    no_reshard: bool,
    offload: bool,
) -> None:
    """Shard the parameters of ``module`` over ``mesh``, in place: over its last axis, replicated along a first one.

    In mixed precision parameters are gathered in the precision, and gradients are reduced in float32. ``offload``:
    shards, their gradients and the optimizer's state are in the host's memory.
    """
    dtype = AUTOCAST_TYPES.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    placed = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=placed, reshard_after_forward=not no_reshard)
    fully_shard(
        module, mesh=mesh, mp_policy=policy, offload_policy=placed
    )  # the root: kept for backward, which needs it at once


def sharded_modules(module: torch.nn.Module) -> list[FSDPModule]:
    """The modules that are groups of their own, the root first."""
    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def sharded_parameters(module: torch.nn.Module) -> list[Any]:
    """FSDP2's own records of the parameters: ``sharded_param`` and, once it was gathered, ``_unsharded_param``."""
    return [
        parameter
        for each in sharded_modules(module)
        for group in each._get_fsdp_state()._fsdp_param_groups
        for parameter in group.fsdp_params
    ]


@contextmanager
def gathered(module: torch.nn.Module, *, no_reshard: bool) -> Iterator[None]:
    """While entered, every rank has the whole weights, so that it may compute by itself. Collective at entry."""
    modules = sharded_modules(module)
    root = modules[0]
    root.set_reshard_after_forward(False)
    root.set_reshard_after_backward(False)
    try:
        for each in modules:
            each.unshard()
        yield
    finally:
        for each in modules:
            each.reshard()
            each.set_reshard_after_forward(each is not root and not no_reshard, recurse=False)
        root.set_reshard_after_backward(True)


def replace_parameters(
    optimizer: torch.optim.Optimizer,
    before: dict[str, torch.nn.Parameter],
    after: dict[str, torch.nn.Parameter],
    cut: Callable[[str, torch.Tensor], torch.Tensor],
) -> None:
    """Let ``optimizer`` update the parameters ``after``, in place of those of the same names ``before``, and move its
    state of them, of which ``cut(name, whole)`` gives this rank's part."""
    names = {id(parameter): name for name, parameter in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [after[names[id(parameter)]] for parameter in group["params"]]
    for old in list(optimizer.state):
        name, state = names[id(old)], optimizer.state.pop(old)
        optimizer.state[after[name]] = {
            key: _sharded(value, after[name], cut(name, value)) if getattr(value, "shape", None) == old.shape else value
            for key, value in state.items()
        }


def _sharded(whole: torch.Tensor, like: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A tensor sharded like a parameter, of which this rank has ``part``."""
    sharded = torch.zeros_like(like, dtype=whole.dtype)
    local = local_part(sharded)
    local.copy_(part.reshape(local.shape))
    return sharded


def one_by_one(optimizer: torch.optim.Optimizer) -> None:
    """Let ``optimizer`` update each parameter by itself: they are on different meshes, which torch's updates of several
    tensors at once do not take."""
    for group in optimizer.param_groups:
        for option in ("foreach", "fused"):
            if option in group:
                group[option] = False

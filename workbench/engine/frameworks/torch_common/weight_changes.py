"""What a cell's loss or model changes of the weights by itself: in place, or whether they are trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.errors import ConfigError


def versions_of(items: Iterable[RankParameter]) -> list[int]:
    """Numbers that grow whenever a parameter is changed in place."""
    return [item.parameter._version for item in items]


def _changed(items: Sequence[RankParameter], before: list[int]) -> list[str]:
    changed = [
        item.layer or "(model)" for item, old in zip(items, before, strict=True) if item.parameter._version != old
    ]
    return list(dict.fromkeys(changed))


def check_unchanged(items: Sequence[RankParameter], before: list[int], plugin: str, what: str) -> None:
    """Refuse, with ``ConfigError``, what changes weights in place: the optimizer's own copy would undo it.

    ``before``: ``versions_of`` the same items before it was called; ``what``: it in words.
    """
    changed = _changed(items, before)
    if changed:
        raise ConfigError(
            f"{what} changes weights in place ({', '.join(changed)}), but --plugin "
            f"{plugin} keeps a copy of its own, which would undo the change: use --plugin ddp",
            field="loss_fn",
        )


def check_changed_alike(items: Sequence[RankParameter], before: list[int], device: torch.device, what: str) -> None:
    """Refuse, with ``ConfigError``, what changes weights in place by its rank's samples, so that ranks part.

    ``before``: ``versions_of`` the same items before it was called; ``what``: it in words. Collective, over all
    ranks, each of which holds all ``items``.
    """
    flags = torch.tensor([item.parameter._version != old for item, old in zip(items, before, strict=True)])
    changed = flags.to(device, torch.int32)
    all_reduce_uncounted(changed, dist.ReduceOp.MAX)
    chosen = [item for item, is_changed in zip(items, changed.tolist(), strict=True) if is_changed]
    apart = layers_apart(chosen, device)
    if apart:
        raise ConfigError(
            f"{what} changes weights in place ({', '.join(apart)}) in a different way on "
            "each rank, as by the samples that it has: ranks would train different models. Train on one rank, or "
            "change weights by something that all ranks share",
            field="loss_fn",
        )


def layers_apart(items: Sequence[RankParameter], device: torch.device) -> list[str]:
    """Layers whose weights are not the same on all ranks, each of which holds all ``items``. Collective."""
    if not items:
        return []
    sums = torch.stack([_checksum(item.parameter.detach()) for item in items]).to(device)
    least, most = sums.clone(), sums.clone()
    all_reduce_uncounted(least, dist.ReduceOp.MIN)
    all_reduce_uncounted(most, dist.ReduceOp.MAX)
    close = torch.isclose(least, most, rtol=1e-9, atol=0.0, equal_nan=True).all(1).tolist()
    return list(
        dict.fromkeys(item.layer or "(model)" for item, is_close in zip(items, close, strict=True) if not is_close)
    )


def _checksum(weight: torch.Tensor) -> torch.Tensor:
    """Two sums over all elements, one of which depends on their order."""
    values = torch.view_as_real(weight) if weight.is_complex() else weight
    flat = values.double().flatten()
    return torch.stack([flat.sum(), flat @ torch.linspace(1, 2, len(flat), dtype=flat.dtype, device=flat.device)])


def check_max_norm(model: torch.nn.Module, spec: TrainSpec) -> None:
    """Refuse, with ``ConfigError``, an embedding with ``max_norm`` where a batch is cut into pieces: it shortens, in
    place, the rows that its own piece looks up."""
    if spec.pieces == 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.max_norm is not None:
            raise ConfigError(
                f"{users_name(name)} is an {type(module).__name__} with max_norm, which shortens the rows of its "
                "rank's own samples only: ranks would train different weights. Train on one rank without gradient "
                "accumulation, or leave max_norm out and normalise what the embedding returns",
                field="model",
            )


class FrozenByCell:
    """Parameters that the optimizer holds and that did not require a gradient when the plan was prepared: no plan
    reduces them later."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._frozen = [
            (users_name(name), parameter)
            for name, parameter in model.named_parameters()
            if id(parameter) in held and not parameter.requires_grad
        ]

    def check(self) -> None:
        """Raise ``ConfigError`` when one of them requires a gradient by now."""
        found = [name for name, parameter in self._frozen if parameter.requires_grad]
        if found:
            raise ConfigError(
                f"{', '.join(found[:8])} began to require a gradient during training, too late for ranks to reduce it: "
                "let the cell train it from the first step, and freeze it at first with %dist_freeze and later "
                "%dist_unfreeze",
                field="model",
            )

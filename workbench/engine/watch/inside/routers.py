"""Which experts the routers of a mixture of experts choose."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.engine.base.names import users_name

_TOP_K = ("top_k", "topk", "moe_top_k", "num_experts_per_tok", "k")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_experts")
#: the number of experts per token in the name of a class, as in Switch Transformers and NLLB
_TOP = re.compile(r"Top(\d)Router")


@dataclass(frozen=True, slots=True)
class Router:
    """A router of ``experts`` experts, of which each token gets ``top_k``."""

    experts: int
    top_k: int


def routers_of(model: torch.nn.Module) -> dict[str, Router]:
    """Routers of ``model``, by the name of the module that gives the logits of the experts.

    Found by structure, whatever they are called: a layer with a matrix that has a row for each expert, where the layer,
    the module around it or the one around that knows the number of experts (an attribute such as ``num_experts``, or a
    list ``experts``) and the number of experts per token (``top_k``, ``num_experts_per_tok`` ...).
    """
    modules: Mapping[str, torch.nn.Module] = {users_name(name): module for name, module in model.named_modules()}
    found: dict[str, Router] = {}
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or next(module.children(), None) is not None:
            continue
        around = [module, *_around(name, modules)]
        outputs = getattr(module, "out_features", weight.shape[0])  # of the whole layer where it is split
        top_k = _number(around, _TOP_K) or _named_top(around)
        if top_k and outputs > 1 and outputs in _experts(around):
            found[name] = Router(int(outputs), top_k)
    return found


def _around(name: str, modules: Mapping[str, torch.nn.Module]) -> list[torch.nn.Module]:
    """The module that a module is in, and the one that this is in."""
    parts = name.split(".") if name else []
    names = [".".join(parts[:-levels]) for levels in (1, 2) if len(parts) >= levels]
    return [modules[each] for each in names if each in modules]


def _experts(around: Sequence[torch.nn.Module]) -> set[int]:
    """Numbers of experts that these modules know of."""
    lists = [each for owner in around if isinstance(each := getattr(owner, "experts", None), torch.nn.Module)]
    counts = {len(list(each.children())) for each in lists}
    return counts | {value for owner in around for name in _EXPERTS if (value := _positive(owner, name))}


def _number(around: Sequence[torch.nn.Module], names: Sequence[str]) -> int:
    return next((value for owner in around for name in names if (value := _positive(owner, name))), 0)


def _named_top(around: Sequence[torch.nn.Module]) -> int:
    matches = (_TOP.search(type(owner).__name__) for owner in around)
    return next((int(match[1]) for match in matches if match), 0)


def _positive(owner: torch.nn.Module, name: str) -> int:
    value: Any = getattr(owner, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


@torch.no_grad()
def routed(logits: torch.Tensor, top_k: int) -> tuple[int, torch.Tensor]:
    """Number of tokens, and float64 [1 + experts]: the entropy of their probabilities over the experts, summed, in
    nats, and how many of their ``top_k`` choices fell on each expert. ``logits``: [..., experts]."""
    experts = logits.shape[-1]
    flat = logits.reshape(-1, experts).double()
    entropy = torch.special.entr(torch.softmax(flat, dim=-1)).sum().reshape(1)
    chosen = flat.topk(min(top_k, experts), dim=-1).indices.reshape(-1)
    load = torch.zeros(experts, dtype=torch.float64, device=flat.device)
    load.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float64))
    return flat.shape[0], torch.cat([entropy, load])

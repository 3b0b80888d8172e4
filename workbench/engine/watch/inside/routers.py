"""Which experts the routers of a mixture of experts choose."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from workbench.engine.base.names import users_name

#: a router's name, as the last part of the module's: as in Mixtral, Qwen-MoE, Switch Transformers
ROUTER = re.compile(r"^(gate|router)$")
_TOP_K = ("top_k", "topk", "num_experts_per_tok", "k")


def routers_of(model: torch.nn.Module) -> dict[str, int]:
    """Routers of ``model``: name of the module that gives the logits of the experts -> experts per token.

    A router is a module called ``gate`` or ``router`` that has, or whose parent has, a number of experts per token:
    an attribute ``top_k``, ``topk``, ``num_experts_per_tok`` or ``k``.
    """
    modules: Mapping[str, torch.nn.Module] = {users_name(name): module for name, module in model.named_modules()}
    found: dict[str, int] = {}
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if not ROUTER.match(last):
            continue
        owners = (module, modules.get(parent))
        known = [getattr(owner, attribute, None) for owner in owners for attribute in _TOP_K]
        top_k = next((value for value in known if isinstance(value, int) and value > 0), None)
        if top_k is not None:
            found[name] = top_k
    return found


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

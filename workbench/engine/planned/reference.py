"""A small network whose steps tell what calls cost on this machine: operators, modules, autograd, the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from workbench.engine.planned.activity import operations_of

_WIDTH, _HEADS, _TOKENS, _BLOCKS = 16, 2, 8, 4


class _Block(torch.nn.Module):
    """A decoder's block, as small as can be: its time is that of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(_WIDTH)
        self.query, self.key, self.value, self.out = (torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(4))
        self.up, self.gate, self.down = (torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm(hidden)
        query, key, value = (
            layer(normed).view(1, _TOKENS, _HEADS, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(1, _TOKENS, _WIDTH))
        return hidden + self.down(functional.silu(self.gate(hidden)) * self.up(hidden))


class Reference:
    """``passes``: a forward and a backward pass, of which the forward pass calls ``operations`` operators.
    ``update``: the norm of the gradients, AdamW and ``zero_grad`` for ``parameters`` tensors."""

    def __init__(self, device: torch.device) -> None:
        network = torch.nn.Sequential(*(_Block() for _ in range(_BLOCKS))).to(device)
        hidden = torch.ones(1, _TOKENS, _WIDTH, device=device)
        own = list(network.parameters())
        optimizer = torch.optim.AdamW(own)
        self.operations = operations_of(lambda: network(hidden))
        self.parameters = len(own)
        self.passes: Callable[[], object] = lambda: network(hidden).sum().backward()

        def update() -> None:
            torch.nn.utils.get_total_norm([each.grad for each in own if each.grad is not None])
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

        self.update: Callable[[], object] = update

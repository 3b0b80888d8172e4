"""What each rank keeps of weights and optimizer state where ranks step by themselves: in its own file of a checkpoint.

The shards of such a checkpoint hold the means of the weights, which any plan reads, and of each parameter the moments
of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from workbench.engine.state.layout import RankState

_ROOM = "apart"


def tensors(held: RankState) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of all tensors that are this rank's own; none where replicas hold the same."""
    if held.apart is None:
        return
    for slot in held.slots:
        yield f"{_ROOM}/weights/{slot.name}", held.apart(slot.saved.tensor)
        for name, value in held.optimizer.state.get(slot.key, {}).items():
            if isinstance(value, torch.Tensor):
                yield f"{_ROOM}/optimizer/{slot.name}/{name}", value
    for name, buffer in held.buffers.items():
        yield f"{_ROOM}/buffers/{name}", held.apart(buffer.tensor)


@torch.no_grad()
def load(file: Any, held: RankState) -> None:
    """Undo ``tensors``, given the rank's open file: afterwards the optimizer has no state but what this rank had."""
    if held.apart is None:
        return
    names: list[str] = [*file.keys()]
    for slot in held.slots:
        slot.saved.tensor.copy_(file.get_tensor(f"{_ROOM}/weights/{slot.name}"))
        before = held.optimizer.state.pop(slot.key, {})
        prefix = f"{_ROOM}/optimizer/{slot.name}/"
        for name in (each for each in names if each.startswith(prefix) and "/" not in each[len(prefix) :]):
            stored, key = file.get_tensor(name), name[len(prefix) :]
            like = before.get(key)  # as the shards had it, on its device
            held.optimizer.state[slot.key][key] = stored if like is None else stored.to(like.device)
    for name, buffer in held.buffers.items():
        buffer.tensor.copy_(file.get_tensor(f"{_ROOM}/buffers/{name}"))

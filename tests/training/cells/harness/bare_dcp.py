"""A script of plain torch that goes on from a directory of ``torch.distributed.checkpoint``. It knows no workbench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

BATCH = 4


def go_on(rank: int, ranks: int, directory: Path, *, cell: str, saved: str, start: int, steps: int) -> list[float]:
    """Losses of ``steps`` steps after ``start``, of the global batch; under FSDP2 where there are several ranks."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/bare", rank=rank, world_size=ranks)
    torch.manual_seed(5)  # of weights that are not those of the checkpoint
    names: dict[str, Any] = {}
    exec(cell, names)
    model, dataset = names["model"], names["dataset"]
    if ranks > 1:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = names["make"](model.parameters())
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optim": moments}
    dcp.load(state, checkpoint_id=saved)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    losses = []
    for step in range(start, start + steps):
        rows = [dataset[(step * BATCH + n) % len(dataset)] for n in range(BATCH)][rank::ranks]
        ids = torch.stack([row["input_ids"] for row in rows])
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        losses.append(whole.item() / ranks)
    dist.destroy_process_group()
    return losses

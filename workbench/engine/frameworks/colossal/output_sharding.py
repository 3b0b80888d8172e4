"""Which outputs of Colossal-AI's tensor-parallel layers are split over the ranks."""

from __future__ import annotations

import torch
from colossalai.shardformer.layer import DropoutForParallelInput
from colossalai.shardformer.layer.parallel_module import PaddingParallelModule, ParallelModule


def output_sharding(module: torch.nn.Module) -> str | None:
    """ "tp" for a layer split by columns that does not gather its output; "" for layers whose output is whole: one that
    gathers, one split by rows (its partial sums are added up before it returns), an embedding; None for any other
    module, such as an activation function, whose output is split as its input is."""
    if isinstance(module, DropoutForParallelInput):
        return "tp"
    if not isinstance(module, (ParallelModule, PaddingParallelModule)):
        return None
    return "" if getattr(module, "gather_output", True) else "tp"

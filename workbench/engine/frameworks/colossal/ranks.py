"""A process as a rank of Colossal-AI: accelerator, repairs, process group, seeds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from colossalai.accelerator import set_accelerator
from colossalai.shardformer.layer.utils import Randomizer
from colossalai.utils import set_seed

from workbench.engine import process_group
from workbench.engine.frameworks.colossal import repairs
from workbench.engine.frameworks.colossal.startup.gloo_accelerator import GlooAccelerator
from workbench.engine.frameworks.torch_common.device import backend_of, rank_device


@contextmanager
def joined(
    rank: int,
    world_size: int,
    rendezvous_dir: str | Path,
    *,
    seed: int = 1024,
    device_type: str | None = None,
    **meeting: Any,
) -> Iterator[torch.device]:
    """As ``workbench.engine.base.joined.Joined``; ``meeting`` are the other arguments of ``process_group.joined``.

    All random seeds become ``seed``, as ``colossalai.launch`` does.
    """
    device = rank_device(device_type)
    if device.type == "cuda":
        set_accelerator("cuda")
        torch.cuda.set_device(device)
    else:
        set_accelerator(GlooAccelerator())
    repairs.apply(device.type)
    repairs.forget_coordinator()
    # Counts the modules with dropout that the process has ever split: seeds of a run would depend on earlier ones, and
    # ranks that took no part in one would be refused.
    Randomizer.reset_index()
    # of torch, about an argument that Colossal-AI gives: nobody who trains can do anything about it
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    with process_group.joined(rank, world_size, rendezvous_dir, backend=backend_of(device), **meeting):
        set_seed(seed)
        try:
            yield device
        finally:
            repairs.forget_coordinator()

"""A process as a rank of plain torch, and what such ranks import."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.engine import preload, process_group
from workbench.engine.frameworks.torch_common.device import backend_of, rank_device

#: the strategies, and what their first step would otherwise import
MODULES = (
    "workbench.engine.frameworks.torch.ddp",
    "workbench.engine.frameworks.torch.context_parallel",
    "workbench.engine.frameworks.torch.fsdp.strategy",
    "workbench.engine.frameworks.torch.pipeline.strategy",
)


def load() -> Callable[[], None]:
    """As ``workbench.engine.preload.load``."""
    return preload.load(MODULES, title="torch")


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
    """As ``workbench.engine.base.joined.Joined``; ``meeting`` are the other arguments of ``process_group.joined``."""
    device = rank_device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with process_group.joined(rank, world_size, rendezvous_dir, backend=backend_of(device), **meeting):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield device

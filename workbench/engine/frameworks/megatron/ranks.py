"""A process as a rank of Megatron-Core, and what such ranks import."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.engine import preload
from workbench.engine.frameworks.megatron import repairs
from workbench.engine.frameworks.torch import ranks
from workbench.engine.frameworks.torch_common.device import rank_device

MODULES = ("workbench.engine.frameworks.megatron.pipeline",)


def load() -> Callable[[], None]:
    """As ``workbench.engine.preload.load``."""
    # it says at import that it does not find CUDA's compiler, which nothing here needs
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return preload.load(MODULES, title="Megatron-Core", importing=repairs.uncompiled)


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
    with repairs.uncompiled():
        from megatron.core import parallel_state
    if rank_device(device_type).type == "cpu":
        repairs.on_processors()
    repairs.with_one_generator()
    parallel_state.destroy_model_parallel()  # of a training that failed
    with ranks.joined(rank, world_size, rendezvous_dir, seed=seed, device_type=device_type, **meeting) as device:
        yield device

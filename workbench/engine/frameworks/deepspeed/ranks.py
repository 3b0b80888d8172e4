"""A process as a rank of DeepSpeed, and what such ranks import."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.engine import preload
from workbench.engine.frameworks.torch import ranks
from workbench.engine.frameworks.torch_common.device import backend_of, rank_device

MODULES = ("workbench.engine.frameworks.deepspeed.zero3",)
#: names of ``deepspeed.utils.groups`` that hold a group, or what groups were made of
_GROUPS = (
    "_WORLD_GROUP",
    "_ZERO_PARAM_INTRA_PARALLEL_GROUP",
    "_DATA_PARALLEL_GROUP",
    "_MODEL_PARALLEL_GROUP",
    "_TENSOR_MODEL_PARALLEL_GROUP",
    "mesh_device",
    "mpu",
)


def load() -> Callable[[], None]:
    """As ``workbench.engine.preload.load``."""
    _choose_accelerator()
    return preload.load(MODULES, title="DeepSpeed", importing=_without_trackers)


@contextmanager
def _without_trackers() -> Iterator[None]:
    """DeepSpeed's tuner asks for MLflow, whose packages start threads: inside, it is not there."""
    hidden = {name: sys.modules.get(name) for name in ("mlflow",)}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in hidden.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _choose_accelerator() -> None:
    """DeepSpeed looks for a GPU when it is imported, which a process that forks must not do."""
    os.environ.update(DS_ACCELERATOR="cpu", DS_IGNORE_CUDA_DETECTION="1")


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
    _choose_accelerator()
    import deepspeed
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    device = rank_device(device_type)
    processor = CPU_Accelerator()
    processor.is_fp16_supported = lambda: True  # it asks Intel's extension, without which torch computes in fp16 too
    set_accelerator(CUDA_Accelerator() if device.type == "cuda" else processor)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # it would be compiled for minutes at the first step, and serves processors that train without torch's collectives
    backend: Any = sys.modules["deepspeed.comm.torch"]  # its package has another ``torch``
    backend.build_shm_op = lambda: None
    before = os.environ.get("LOCAL_RANK")
    os.environ.setdefault("LOCAL_RANK", str(rank))
    try:
        with ranks.joined(rank, world_size, rendezvous_dir, seed=seed, device_type=device_type, **meeting):
            _forget_training()
            deepspeed.init_distributed(backend_of(device), auto_mpi_discovery=False, verbose=False)
            try:
                yield device
            finally:
                _forget_training()
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]


def _forget_training() -> None:
    """DeepSpeed keeps the groups of an earlier training in its modules, which ``process_group`` has ended, and counts
    on in the numbers of parameters and modules, which ranks compare: some may have trained before alone."""
    from deepspeed import comm
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import groups

    comm.comm.cdb = None
    for name in _GROUPS:
        setattr(groups, name, None)
    groups._ALL_TO_ALL_GROUP = {}
    Init.param_id = 0
    (modules,) = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    modules[0] = 0
    parameter_offload.FWD_MODULE_STACK.clear()

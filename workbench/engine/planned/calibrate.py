"""Measures what this machine does in a second, on all ranks at once: about two seconds.

Every time is a mean over ``_LEAST_S``, not a median of short ones: a step is longer than the turn that a scheduler
gives a process, so what other programs take of the cores is part of it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import torch
import torch.distributed as dist

from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.planned.reference import Reference
from workbench.planner.forecast import PASSES
from workbench.planner.machine import Machine

#: how often an act is repeated at least, and for how many seconds
_REPEATS, _LEAST_S = 5, 0.25
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GEMM_SIZE = {"cpu": 512, "cuda": 4096}
#: elements of the large tensors: 32 MB in fp32
_ELEMENTS = 8 * 2**20
_SMALL_ELEMENTS = 4


def calibrate(file: str, precision: str) -> None:
    """On every rank, in the group of cells: measure, and write the ``Machine`` into ``file`` on rank 0. Collective.

    ``precision``: that of matrix products, fp32, bf16 or fp16.
    """
    device = rank_device()
    size = _GEMM_SIZE[device.type]
    left, right = torch.ones(2, size, size, device=device, dtype=_DTYPES[precision])
    large, other = torch.ones(2, _ELEMENTS, device=device)
    reference = Reference(device)
    _meet()
    product_s = _seconds(lambda: torch.mm(left, right), device)
    moved_s = _seconds(lambda: large.add_(other), device)
    operation_s = _seconds(reference.passes, device) / (PASSES * reference.operations)
    update_s = _seconds(reference.update, device) / reference.parameters
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    latency_s, link = _link(large, device, ranks) if ranks > 1 else (float("nan"), float("nan"))
    if int(os.environ["RANK"]) == 0:
        found = Machine(
            host=platform.node(),
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            ranks=ranks,
            threads=torch.get_num_threads(),
            precision=precision,
            date=datetime.now().isoformat(timespec="minutes"),
            flops_per_s=2 * size**3 / product_s,
            bytes_per_s=3 * large.numel() * large.element_size() / moved_s,
            operation_s=operation_s,
            update_s=update_s,
            latency_s=latency_s,
            link_bytes_per_s=link,
            overlaps=device.type == "cuda",
        )
        Path(file).write_text(json.dumps(found.to_json()), encoding="utf-8")


def _link(large: torch.Tensor, device: torch.device, ranks: int) -> tuple[float, float]:
    """Latency of a message, and bytes per second, from a small and a large all-reduce over a ring."""
    few = torch.ones(_SMALL_ELEMENTS, device=device)
    _meet()
    small_s = _seconds(lambda: dist.all_reduce(few), device)
    large_s = _seconds(lambda: dist.all_reduce(large), device)
    rounds = 2 * (ranks - 1)
    sent = large.numel() * large.element_size() * rounds / ranks
    return small_s / rounds, sent / max(1e-9, large_s - small_s)


def _meet() -> None:
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1, device=rank_device()))


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """The mean time of an act, after one that does not count. Collective where the act is: all ranks repeat it as often
    as rank 0's first one lets expect."""
    taken = 0.0
    for _ in range(2):
        began = time.perf_counter()
        act()
        _finish(device)
        taken = time.perf_counter() - began
    repeats = torch.tensor(max(_REPEATS, math.ceil(_LEAST_S / max(taken, 1e-9))), device=device)
    if dist.is_initialized():
        dist.broadcast(repeats, src=0)
    count = int(repeats)
    began = time.perf_counter()
    for _ in range(count):
        act()
    _finish(device)
    return (time.perf_counter() - began) / count


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()

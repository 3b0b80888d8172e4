"""How long torch's DDP took to reduce gradients, as its own reducer measures it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from workbench.core.mesh import Mesh, describe_group
from workbench.core.records import CollectiveRecord


class DdpReducerReader:
    """Reads the times that torch's DDP keeps of its gradient buckets, which C++ code reduces during the backward pass.

    The times of a step become available in the forward pass of the next step. On a GPU, DDP measures every hundredth
    step only, as measuring synchronises the device.
    """

    def __init__(self, module: Any, mesh: Mesh, *, on_host: bool) -> None:
        self._module = module
        self.group, self.group_size = describe_group(dist.get_process_group_ranks(module.process_group), mesh)
        self._seen: tuple[int, int] = (0, 0)
        self._on_host = on_host
        self._logger: Any = None
        self._measure_each_step()

    def _measure_each_step(self) -> None:
        self._logger = self._module.logger
        if self._on_host:
            self._module._set_ddp_runtime_logging_sample_rate(1)

    def read(self, step: int, rank: int, computed_ms: float) -> CollectiveRecord | None:
        """Return the gradient reduction of ``step``, the previous step, or None when DDP did not measure that step.

        All buckets form one record, from the first posted bucket to the last completed one. ``computed_ms``: when the
        step's backward computation had ended, in ms from the start of the step.
        """
        if self._logger is not self._module.logger:  # a new reducer: torch_common.ddp_reduction
            self._measure_each_step()
            return None
        data = self._module._get_ddp_logging_data()
        taken = data.get("backward_comm_time", 0), data.get("backward_compute_time", 0)
        if taken == self._seen or not taken[0]:
            return None
        self._seen = taken
        sizes = data.get("rebuilt_bucket_sizes") or data["bucket_sizes"]
        hidden_ms = data.get("backward_compute_comm_overlap_time", 0) / 1e6
        return CollectiveRecord(
            step=step,
            rank=rank,
            kind="all_reduce",
            group=self.group,
            group_size=self.group_size,
            bytes=sum(int(size) for size in sizes.split(",")),
            start_ms=computed_ms - hidden_ms,
            duration_ms=taken[0] / 1e6,
            exposed_ms=taken[0] / 1e6 - hidden_ms,
        )

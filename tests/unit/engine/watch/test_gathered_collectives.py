"""Collectives that torch's coalescing manager gathers, while phases are watched: Megatron's DDP reduces by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from workbench.core.mesh import Mesh
from workbench.engine.watch.torch.collectives import CollectiveRecorder


class Recorder:
    """A recorder of phases that is within a backward pass."""

    current = ("backward", -1)

    def __init__(self) -> None:
        self.entered: list[str] = []

    def enter(self, phase: str, number: int) -> None:
        self.entered.append(phase)

    def resume(self, before: Any) -> None:
        """The phase that was before goes on."""


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("async_op", [False, True])
def test_calls_that_begin_later_are_not_awaited(group: None, split: bool, async_op: bool) -> None:
    recorder = Recorder()
    watched = CollectiveRecorder(cast(Any, recorder), Mesh(), 0, split=split)
    watched.recording = True
    tensors = [torch.ones(2), torch.ones(3)]
    watched.install()
    try:
        with dist._coalescing_manager(async_ops=async_op) as gathered:  # type: ignore[attr-defined]
            for tensor in tensors:
                dist.all_reduce(tensor, async_op=async_op)
        if async_op:
            gathered.wait()
        assert not recorder.entered
        dist.all_reduce(tensors[0])
        assert recorder.entered == ["communication"]
    finally:
        watched.remove()
    assert [tensor.sum().item() for tensor in tensors] == [2, 3]

"""Where the shards of FSDP2 lie in whole parameters: the ranks' parts put together are the parameter, each element
once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.mesh import Mesh
from workbench.engine.state.layout import Place


def local_of(whole: torch.Tensor, mesh: Mesh, rank: int, cut: Any, replicate: int) -> torch.Tensor:
    """What torch leaves a rank: the part of tensor parallelism, of which FSDP2 chunks the rows."""
    here = mesh.coordinates(rank)
    if cut is not None:
        whole = Place(tuple(whole.shape), cut.dim, cut.runs).of(whole)
    shards = mesh.dp // replicate
    chunks = torch.chunk(whole, shards)
    shard = here.dp % shards
    return chunks[shard] if shard < len(chunks) else whole[:0]


@settings(deadline=None)  # the first call imports
@given(
    dp=st.sampled_from((1, 2, 3, 4)),
    tp=st.sampled_from((1, 2)),
    rows=st.integers(1, 7),
    replicate=st.sampled_from((1, 2)),
    style=st.sampled_from(("whole", "rows", "columns", "fused")),
)
def test_the_parts_of_all_ranks_are_the_parameter(*, dp: int, tp: int, rows: int, replicate: int, style: str) -> None:
    from workbench.engine.frameworks.torch.fsdp.shards import ShardPlaces
    from workbench.engine.frameworks.torch.tensor_parallel.parallelize import Cut, _runs

    replicate = replicate if dp % replicate == 0 else 1
    mesh = Mesh(dp=dp, tp=tp)
    whole = torch.arange(rows * 2 * 12.0).view(rows * 2, 12)
    put, told = torch.zeros_like(whole), torch.zeros_like(whole)
    for rank in range(mesh.world_size):
        here = mesh.coordinates(rank)
        dim = {"whole": None, "rows": 0, "columns": 1, "fused": 1}[style] if tp > 1 else None
        cut = None if dim is None else Cut(dim, _runs(whole.shape[dim], here.tp, tp, fused=style == "fused"))
        places = ShardPlaces(
            {"weight": tuple(whole.shape)}, mesh, here, replicate=replicate, cuts={"weight": cut} if cut else {}
        )
        place, local = places.place("weight"), local_of(whole, mesh, rank, cut, replicate)
        assert torch.equal(place.of(whole).reshape(local.shape), local)
        place.put(local, put)
        if places.is_counted_here("weight", 0):
            own = torch.zeros(local.numel())
            told_by = places.told(torch.arange(local.numel()))
            own[told_by.reshape(-1)] = 1
            count = torch.zeros_like(whole)
            place.put(own.view(local.shape), count)
            told += count
    assert torch.equal(put, whole)
    assert torch.equal(told, torch.ones_like(whole)), "each element counts once in norms and statistics"


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dim=st.integers(0, 2),
    runs=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 2)), min_size=1, max_size=3),
    first=st.integers(0, 80),
    length=st.integers(0, 80),
)
def test_a_slice_of_a_part_is_where_its_elements_are_in_the_whole(*, shape, dim, runs, first, length) -> None:
    dim = dim % len(shape)
    begin, placed = 0, []
    for gap, size in runs:
        placed.append((begin + gap, size))
        begin += gap + size
    shape[dim] = begin + 1
    whole = torch.arange(math.prod(shape)).view(shape)
    part = Place(tuple(shape), dim, tuple(placed))
    flat = part.of(whole).reshape(-1)
    first, length = min(first, flat.numel()), min(length, max(0, flat.numel() - first))
    piece = part.slice_of(first, length)
    assert torch.equal(piece.of(whole), flat[first : first + length])
    assert torch.equal(piece.slice_of(0, length // 2).of(whole), flat[first : first + length // 2])


@pytest.mark.parametrize(("groups", "expected"), [(1, [[0, 1, 2, 3]] * 2), (2, [[0, 1], [2, 3]])])
def test_groups_that_hold_the_same_tell_a_share_each(groups: int, expected: list[list[int]]) -> None:
    from workbench.engine.frameworks.torch.fsdp.shards import ShardPlaces

    mesh = Mesh(dp=2)
    for rank in (0, 1):
        places = ShardPlaces({}, mesh, mesh.coordinates(rank), replicate=groups)
        assert places.told(torch.arange(4)).tolist() == expected[rank]

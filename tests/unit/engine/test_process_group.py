"""Groups that are left end when nothing uses them any more, and by a reference of Python's."""

from __future__ import annotations

import weakref
from pathlib import Path

import torch.distributed as dist

from workbench.engine import process_group


def test_groups_that_are_left_end_with_the_block_that_outlives_them(tmp_path: Path) -> None:
    with process_group.outlived():
        with process_group.joined(0, 1, tmp_path, backend="gloo"):
            groups = [weakref.ref(group) for group in (dist.group.WORLD, dist.new_group([0]))]
        assert not dist.is_initialized() and all(group() is not None for group in groups)
    assert [group() for group in groups] == [None, None]


def test_groups_that_are_left_elsewhere_end_at_once(tmp_path: Path) -> None:
    with process_group.joined(0, 1, tmp_path, backend="gloo"):
        groups = [weakref.ref(group) for group in (dist.group.WORLD, dist.new_group([0]))]
    assert [group() for group in groups] == [None, None]

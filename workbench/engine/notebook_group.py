"""The process group that ``%%dist`` cells find ready on CPU and GPU ranks of torch.

A training leaves it and meets the other ranks in a group of its own; the session makes it anew before the next cell,
as it does when a cell destroyed it.
Imports no torch: ranks of other libraries have no such group.
"""

from __future__ import annotations

import functools
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from workbench.core.live import given_names
from workbench.errors import WorkbenchError

#: the group that ``join`` made, until it is left
_joined = ExitStack()
_ours: list[int] = []
#: the file that tells the session that a cell destroyed the group; empty while no group is made, or we leave it
_mark: list[Path] = []


def _destroyed_mark(directory: str | Path, token: str) -> Path:
    """The file that a rank makes when a cell has left it without a group. ``directory``, ``token``: as for ``join``."""
    return Path(directory) / f"destroyed-{token}"


def join(directory: str, token: str) -> None:
    """Put this rank into a group of all ranks of the session, in place of any other. Collective.

    ``directory``, ``token``: where they meet. When they cannot, a warning says why, and cells run without a group. A
    cell may call ``init_process_group`` itself all the same: it replaces this group.
    """
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    from workbench.engine import process_group
    from workbench.engine.collectives import record
    from workbench.engine.frameworks.torch_common.device import backend_of, rank_device

    lost = leave()
    if lost:
        print(lost, file=sys.stderr)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        _joined.enter_context(
            process_group.joined(rank, world_size, directory, backend=backend_of(rank_device()), token=token)
        )
    except WorkbenchError as error:
        print(f"cells have no process group: {error}", file=sys.stderr)
        return
    _give_names()
    _ours[:] = [id(dist.group.WORLD)]
    _mark[:] = [_destroyed_mark(directory, token)]
    if not hasattr(dist.init_process_group, "replaces"):
        dist.init_process_group = _replacing(dist.init_process_group)
        dist.destroy_process_group = _telling(dist.destroy_process_group)
        recorded = record.current()
        if recorded is not None:
            recorded.on_broken = _mark_broken


def _give_names() -> None:
    """Let cells find torch, its ``dist``, and ``share``, which needs the group; a name of the cells' own is kept."""
    from IPython.core.getipython import get_ipython

    from workbench.engine.share.share import share

    shell = get_ipython()
    if shell is None:
        return
    given = {"torch": sys.modules["torch"], "dist": sys.modules["torch.distributed"], "share": share}
    given_names.give(shell, {name: value for name, value in given.items() if name not in shell.user_ns})


def leave() -> str:
    """Leave the process groups that this process is in, whoever made them. Waits for no other rank.

    Returns what cells lose by it, in words; "" when they made no group.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return ""
    from workbench.engine import process_group

    groups = len(dist.distributed_c10d._world.pg_map)
    lost = "" if groups == 1 and _is_ours(dist) else "groups that cells made (init_process_group, new_group) ended"
    _ours.clear()
    mark = _mark.copy()
    _mark.clear()
    _joined.close()
    process_group.leave()
    _mark[:] = mark
    return lost


def _mark_broken() -> None:
    """Tell the session that the group no longer works: it is made anew before the next cell. From any thread."""
    if _mark:
        _mark[0].touch()


def _is_ours(dist: Any) -> bool:
    return dist.is_initialized() and _ours == [id(dist.group.WORLD)]


def _replacing(upstream: Any) -> Any:
    """``init_process_group`` for cells that are used to making the group themselves."""

    @functools.wraps(upstream)
    def init_process_group(*args: Any, **options: Any) -> None:
        if _is_ours(sys.modules["torch.distributed"]):
            leave()
        upstream(*args, **options)

    init_process_group.replaces = True  # type: ignore[attr-defined]
    return init_process_group


def _telling(upstream: Any) -> Any:
    """``destroy_process_group`` that tells the session when a cell is left without a group."""

    @functools.wraps(upstream)
    def destroy_process_group(*args: Any, **options: Any) -> None:
        upstream(*args, **options)
        if _mark and not sys.modules["torch.distributed"].is_initialized():
            _mark[0].touch()

    return destroy_process_group

"""Releases this rank from a collective that cannot end. Called in a thread of its own, while the cell waits."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from workbench.core.live import current_cell
from workbench.engine.collectives.record import Record, current

_RECORD = str(Record.run.__code__.co_filename)
#: where the main thread was when a release found it in no recorded collective
_seen: list[tuple[FrameType, int]] = []


def release(*, cell: int, failed: dict[str, str], reason: str = "") -> None:
    """Ends the collective that this rank waits in, if one of ``failed`` belongs to its group; the cell gets an error.

    ``cell``: the number of the cell that is meant; in another one, nothing is done. ``failed``: rank -> why it will not
    come ("rank 1 raised ValueError: ..."). In this cell, collectives with these ranks end before they begin.
    ``reason``: end the collective whoever belongs to the group, and say this. A rank in no collective goes on.
    """
    record = current()
    if record is None or cell != current_cell.current():
        return
    record.note_failures(cell, {int(rank): why for rank, why in failed.items()})
    waiting = record.waiting_in
    if waiting is not None:
        missing = sorted(record.failed.keys() & set(waiting.group.members))
        group = waiting.group.group
        if group is not None and (missing or reason):
            _break(record, [group], reason or record.failed[missing[0]])
    elif record.polls or _stands_in_torch():
        groups = [each for each in record.connections.groups() if reason or _has(record, each)]
        _break(record, groups, reason or next(iter(record.failed.values()), ""))


def drop(*, reason: str) -> None:
    """Closes the connections of all groups of this rank, as a network that fails does. ``reason``: said in errors."""
    record = current()
    if record is not None:
        record.note_failures(current_cell.current(), {})
        _break(record, record.connections.groups(), reason)


def _has(record: Record, group: Any) -> bool:
    import torch.distributed as dist

    try:
        return bool(record.failed.keys() & set(dist.get_process_group_ranks(group)))
    except (KeyError, ValueError):  # it was left
        return False


def _break(record: Record, groups: list[Any], why: str) -> None:
    record.released = why
    for group in groups:
        record.connections.shut(group)
    if groups:
        current_cell.note_broken(why)
        record.on_broken()


def _stands_in_torch() -> bool:
    """Whether the main thread is where it was at the last call, in torch or in a wait for what was not recorded: the
    collectives of DDP's reducer, functional ones, and those that are called on a group itself."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return False
    file = frame.f_code.co_filename
    seen, _seen[:] = _seen[:], [(frame, frame.f_lasti)]
    return seen == _seen and ("/torch/" in file or file == _RECORD)

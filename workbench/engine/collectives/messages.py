"""Messages between two ranks (``send``, ``recv``, ``isend``, ``irecv``), numbered as both ends of a stream count them.

A stream is what one rank sends to another in a group, under one tag: its n-th message is taken by the n-th receive.
"""

from __future__ import annotations

import threading
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from workbench.core.live.collective_row import MESSAGE
from workbench.errors import format_ranks

SENDS, RECEIVES = ("send", "isend"), ("recv", "irecv")
KINDS = (*SENDS, *RECEIVES)


@dataclass(frozen=True)
class Place:
    """Where a message of this rank goes to (``sends``) or comes from. ``peer``: the other rank; None: whoever sends."""

    sends: bool
    peer: int | None
    tag: int

    @classmethod
    def of(cls, kind: str, group: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Place:
        """Returns that of a call of ``kind`` in ``group``."""
        sends = kind in SENDS
        name = "dst" if sends else "src"
        peer = args[1] if len(args) > 1 else options.get(name)
        there = options.get(f"group_{name}")
        if peer is None and there is not None:
            peer = dist.get_global_rank(group, there)
        return cls(sends, peer, args[3] if len(args) > 3 else options.get("tag", 0))

    def __str__(self) -> str:
        if self.peer is None:
            return "from any rank"
        return f"{'to' if self.sends else 'from'} rank {self.peer}"


class Stream:
    """The messages of one rank to another, recorded as the collectives of a group of the two are.

    ``group_key``, ``name``: of their group. ``number``: of the message that was posted last.
    """

    def __init__(self, group: Any, group_key: int, name: str, *, rank: int, place: Place) -> None:
        assert place.peer is not None
        ends = (rank, place.peer) if place.sends else (place.peer, rank)
        self.name = name
        self.members = sorted(ends)
        self.words = format_ranks(ends)
        self.key = zlib.crc32(f"{group_key} {ends} {place.tag}".encode()) << 8 | MESSAGE
        self.neighbours = {place.peer}
        self.number = 0
        self._group = weakref.ref(group)  # held, it would keep its connections when it is left

    @property
    def group(self) -> Any:
        """The group of torch; None when it was left."""
        return self._group()


class Streams:
    """The streams of this rank. They are no longer counted once a message was received from whoever sends, or was
    posted by another thread: then nobody knows which message a receive takes."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._streams: dict[tuple[int, Place], Stream] = {}
        self._counts = True

    def forget(self) -> None:
        """Forgets all: a new default group takes the place of all groups."""
        self._streams.clear()
        self._counts = True

    def find(self, group: Any, group_key: int, name: str, place: Place) -> Stream | None:
        """Returns the stream of a message; None where messages are not counted."""
        if place.peer is None:
            self._counts = False
        if not self._counts or place.peer is None:
            return None
        stream = self._streams.get((group_key, place))
        if stream is None:
            stream = self._streams[group_key, place] = Stream(group, group_key, name, rank=self._rank, place=place)
        return stream

    def note_thread(self) -> None:
        """Notes that a thread posts a message."""
        if threading.current_thread() is not threading.main_thread():
            self._counts = False


def signature(tensor: Any) -> int:
    """Returns a number that differs between messages that do not match: of another size or dtype."""
    told = (tensor.numel(), str(tensor.dtype)) if isinstance(tensor, torch.Tensor) else ()
    return zlib.crc32(repr(told).encode())

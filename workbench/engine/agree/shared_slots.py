"""Messages and sums between the ranks of one host, through a memory-mapped file.

A broadcast or an all-reduce of a few bytes takes hundreds of microseconds of each rank's step (threads, sockets); this
takes a few.

Messages: rank 0 writes message ``n`` into slot ``n`` of a ring buffer. Every other rank reads the messages in order and
waits for one that has not been written yet, so all ranks get the same ``n``-th message even if they are several steps
apart.

Sums: each rank writes its terms of sum ``n`` into a slot of its own and waits until all others have written theirs. Odd
and even sums use separate slots. A rank that has finished sum ``n`` may write its terms of sum ``n + 1`` while another
one still reads sum ``n``; it cannot start sum ``n + 2`` before the other one has written its terms of ``n + 1``.

Every entry carries a checksum, so that a partly written entry is never taken for a complete one, whatever the order in
which the processor stores its parts.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from workbench.core.live import rank_row

SLOTS = 64
_HEAD = struct.Struct("<q")  # the nonce
_SLOT = struct.Struct("<qqqq")  # number of the message or sum, first value, second value, checksum
_CELL = struct.Struct("<q")  # number of messages that a rank has read
_PROCESS = struct.Struct("<q")  # process id of a rank
_NUMBERS, _BITS = struct.Struct("<dd"), struct.Struct("<qq")
_MASK = (1 << 62) - 1
#: in place of the process id of a rank that has left
_LEFT = -1
#: seconds between two reads while waiting for a message: at first, later, and when "later" begins
_SHORT_S, _LONG_S, _LONG_AFTER_S = 0.0001, 0.1, 0.1
_ALIVE_EVERY_S = 1.0
#: waiting for the terms of a sum: number of reads without a pause, then seconds between two reads at first and later,
#: and when "later" begins
_LOOKS, _SUM_SHORT_S, _SUM_LONG_S, _SUM_LONG_AFTER_S = 20, 0.00005, 0.001, 0.02
#: seconds after which a missing rank is an error, as for other collectives
_TIMEOUT_S = 1800.0


class PeerLostError(RuntimeError):
    """A rank ended, or did not come, while another one waited for what it would say."""


def _check(number: int, first: int, second: int) -> int:
    return (number * 31 + first * 17 + second) & _MASK


class SharedSlots:
    """The mapped file. Rank 0 creates it (``create``) before the others open it; ``nonce`` identifies this run's
    file. ``timeout_s``: seconds after which a rank that does not come is a ``PeerLostError`` (None: 30 minutes for a
    sum, no limit for a message)."""

    def __init__(self, path: Path, rank: int, ranks: int, *, timeout_s: float | None = None) -> None:
        self._timeout_s = timeout_s
        self._rank = rank
        self._ranks = ranks
        self._count = 0
        self._sums = 0
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.size(ranks))
        (self.nonce,) = _HEAD.unpack_from(self._map, 0)
        if rank:
            _PROCESS.pack_into(self._map, self._process(rank), os.getpid())

    @staticmethod
    def size(ranks: int) -> int:
        """Size of the file in bytes."""
        return _HEAD.size + SLOTS * _SLOT.size + ranks * (_CELL.size + _PROCESS.size + 2 * _SLOT.size)

    @classmethod
    def create(cls, path: Path, ranks: int, nonce: int) -> None:
        """Create the file, replacing an older one. Called in rank 0's process."""
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.write(_HEAD.pack(nonce).ljust(cls.size(ranks), b"\0"))
            file.seek(cls._process_at(0, ranks))
            file.write(_PROCESS.pack(os.getpid()))

    def send(self, first: int, second: int) -> None:
        """Send the next message, on rank 0. Waits only if a rank is ``SLOTS`` messages behind."""
        self._count += 1
        if self._count > SLOTS:
            self._wait_for_readers(self._count - SLOTS)
        check = _check(self._count, first, second)
        _SLOT.pack_into(self._map, self._at(self._count), self._count, first, second, check)

    def receive(self, *, long_wait: bool = False) -> tuple[int, int]:
        """Wait for the next message and return its two values, on any rank but 0.

        ``long_wait``: the message may take long, so read rarely and use hardly any CPU time. Raises ``PeerLostError``
        when rank 0 has ended.
        """
        self._count += 1
        began = looked = time.monotonic()
        while True:
            number, first, second, check = _SLOT.unpack_from(self._map, self._at(self._count))
            if number == self._count and check == _check(number, first, second):
                _CELL.pack_into(self._map, self._cell(self._rank), self._count)
                return first, second
            now = time.monotonic()
            if now - looked > _ALIVE_EVERY_S:
                looked = now
                if not self.lives(0):
                    raise PeerLostError("rank 0 has ended, and with it the agreement on commands")
            if self._timeout_s is not None and now - began > self._timeout_s:
                raise PeerLostError(f"rank 0 has said nothing for {now - began:.0f} s")
            time.sleep(_LONG_S if long_wait or now - began > _LONG_AFTER_S else _SHORT_S)

    def summed(self, first: float, second: float) -> tuple[float, float]:
        """Return the sums of ``first`` and ``second`` over all ranks, added in the order of ranks. Collective.

        Raises ``PeerLostError`` when a rank has ended, or does not arrive within 30 minutes.
        """
        self._sums += 1
        mine = _BITS.unpack(_NUMBERS.pack(first, second))
        _SLOT.pack_into(self._map, self._part(self._rank), self._sums, *mine, _check(self._sums, *mine))
        parts: list[tuple[float, float] | None] = [None] * self._ranks
        looks, began, looked = 0, 0.0, 0.0
        while missing := [rank for rank, part in enumerate(parts) if part is None]:
            for rank in missing:
                parts[rank] = self._read(rank)
            looks += 1
            if looks <= _LOOKS:
                os.sched_yield()
                continue
            now = time.monotonic()
            began, looked = began or now, looked or now
            if now - looked > _ALIVE_EVERY_S:
                looked = now
                if any(map(rank_row.is_in_debugger, missing)):
                    began = now
                self._check_peers(missing, now - began)
            time.sleep(_SUM_LONG_S if now - began > _SUM_LONG_AFTER_S else _SUM_SHORT_S)
        first = second = 0.0
        for part in parts:
            assert part is not None
            first, second = first + part[0], second + part[1]
        return first, second

    def _read(self, rank: int) -> tuple[float, float] | None:
        """A rank's terms of the current sum; None before they are written."""
        number, first, second, check = _SLOT.unpack_from(self._map, self._part(rank))
        if number != self._sums or check != _check(number, first, second):
            return None
        return _NUMBERS.unpack(_BITS.pack(first, second))

    def _check_peers(self, missing: list[int], waited_s: float) -> None:
        for rank in missing:
            if not self.lives(rank):
                raise PeerLostError(f"rank {rank} has ended while others waited for it at the end of a step")
        if waited_s > (_TIMEOUT_S if self._timeout_s is None else self._timeout_s):
            late = ", ".join(map(str, missing))
            raise PeerLostError(
                f"rank(s) {late} did not come to the end of a step that others reached {waited_s:.0f} s ago"
            )

    def leave(self) -> None:
        """Say that this rank says nothing more: ranks that wait for it get a ``PeerLostError``."""
        _PROCESS.pack_into(self._map, self._process(self._rank), _LEFT)

    def check(self) -> None:
        """Raise ``PeerLostError`` when a rank has ended, or has left."""
        self._check_peers([rank for rank in range(self._ranks) if rank != self._rank], 0.0)

    def lives(self, rank: int) -> bool:
        """Whether a rank's process is visible from this one and alive, and the rank has not left."""
        (process,) = _PROCESS.unpack_from(self._map, self._process(rank))
        return Path(f"/proc/{process}").exists()

    def _wait_for_readers(self, number: int) -> None:
        cells = {rank: self._cell(rank) for rank in range(1, self._ranks)}
        began = time.monotonic()
        while behind := [rank for rank, cell in cells.items() if _CELL.unpack_from(self._map, cell)[0] < number]:
            if self._timeout_s is not None and time.monotonic() - began > self._timeout_s:
                raise PeerLostError(f"rank(s) {', '.join(map(str, behind))} are {SLOTS} steps behind")
            time.sleep(_SHORT_S)

    def _at(self, number: int) -> int:
        return _HEAD.size + number % SLOTS * _SLOT.size

    def _cell(self, rank: int) -> int:
        return _HEAD.size + SLOTS * _SLOT.size + rank * _CELL.size

    def _process(self, rank: int) -> int:
        return self._process_at(rank, self._ranks)

    @staticmethod
    def _process_at(rank: int, ranks: int) -> int:
        return _HEAD.size + SLOTS * _SLOT.size + ranks * _CELL.size + rank * _PROCESS.size

    def _part(self, rank: int) -> int:
        return self._process(self._ranks) + (self._sums % 2 * self._ranks + rank) * _SLOT.size

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

"""What the ranks of one host tell each other at every step, through a file that all of them have mapped.

A broadcast or reduction of a few bytes costs some hundred microseconds of each rank's step (threads, sockets); this
costs a few.

Messages: rank 0 writes message ``n`` into slot ``n`` of a ring, each other rank reads the messages in order, waiting
where one is not there yet: so all ranks get the same ``n``-th message, however far they are apart.

Sums: each rank writes what it has to add into a cell of its own, and waits until all others have as often. Odd and even
sums have cells apart: a rank that is through with sum ``n`` may go on to ``n + 1`` while another still reads, but no
further, as that one has not written again.

What is written carries a sum over its contents, so that what is half written is not taken for whole, whatever the order
in which the processor stores.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

SLOTS = 64
_HEAD = struct.Struct("<q")  # the nonce
_SLOT = struct.Struct("<qqqq")  # number of the message, first value, second value, sum
_CELL = struct.Struct("<q")  # how many messages a rank has read
_PROCESS = struct.Struct("<q")  # of a rank
_NUMBERS, _BITS = struct.Struct("<dd"), struct.Struct("<qq")
_MASK = (1 << 62) - 1
#: seconds between looks: while a message is expected any moment, and after a while without one
_SHORT_S, _LONG_S, _LONG_AFTER_S = 0.0001, 0.1, 0.1
_ALIVE_EVERY_S = 1.0
#: a rank's part of a sum is missing: looks at once, seconds between looks then, and between later ones
_LOOKS, _SUM_SHORT_S, _SUM_LONG_S, _SUM_LONG_AFTER_S = 20, 0.00005, 0.001, 0.02
#: as for any collective: a rank that has not come by then will not
_TIMEOUT_S = 1800.0


class PeerLostError(RuntimeError):
    """A rank ended, or did not come, while another one waited for what it would say."""


def _check(number: int, first: int, second: int) -> int:
    return (number * 31 + first * 17 + second) & _MASK


class SharedSlots:
    """The ring. Rank 0 makes the file (``create``) before the others open it; ``nonce`` tells one from an older one."""

    def __init__(self, path: Path, rank: int, ranks: int) -> None:
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
        """Bytes of the file."""
        return _HEAD.size + SLOTS * _SLOT.size + ranks * (_CELL.size + _PROCESS.size + 2 * _SLOT.size)

    @classmethod
    def create(cls, path: Path, ranks: int, nonce: int) -> None:
        """Make the file anew, for rank 0's process."""
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.write(_HEAD.pack(nonce).ljust(cls.size(ranks), b"\0"))
            file.seek(cls._process_at(0, ranks))
            file.write(_PROCESS.pack(os.getpid()))

    def send(self, first: int, second: int) -> None:
        """Rank 0: the next message. Waits only if a rank is 64 messages behind."""
        self._count += 1
        if self._count > SLOTS:
            self._wait_for_readers(self._count - SLOTS)
        check = _check(self._count, first, second)
        _SLOT.pack_into(self._map, self._at(self._count), self._count, first, second, check)

    def receive(self, *, patient: bool = False) -> tuple[int, int]:
        """Another rank: the next message, as soon as it is there. ``PeerLostError`` when rank 0 has ended.

        ``patient``: it may take long, so look seldom and use next to no processor time.
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
            time.sleep(_LONG_S if patient or now - began > _LONG_AFTER_S else _SHORT_S)

    def summed(self, first: float, second: float) -> tuple[float, float]:
        """Every rank: the sums of what the ranks pass, added in their order. Waits for all of them.

        ``PeerLostError`` when one has ended, or does not come.
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
                self._check_peers(missing, now - began)
            time.sleep(_SUM_LONG_S if now - began > _SUM_LONG_AFTER_S else _SUM_SHORT_S)
        first = second = 0.0
        for part in parts:
            assert part is not None
            first, second = first + part[0], second + part[1]
        return first, second

    def _read(self, rank: int) -> tuple[float, float] | None:
        """A rank's part of the sum that is under way; None while it is not there."""
        number, first, second, check = _SLOT.unpack_from(self._map, self._part(rank))
        if number != self._sums or check != _check(number, first, second):
            return None
        return _NUMBERS.unpack(_BITS.pack(first, second))

    def _check_peers(self, missing: list[int], waited_s: float) -> None:
        for rank in missing:
            if not self.lives(rank):
                raise PeerLostError(f"rank {rank} has ended while others waited for it at the end of a step")
        if waited_s > _TIMEOUT_S:
            late = ", ".join(map(str, missing))
            raise PeerLostError(
                f"rank(s) {late} did not come to the end of a step that others reached {waited_s:.0f} s ago"
            )

    def lives(self, rank: int) -> bool:
        """Whether a rank's process is seen from here and alive."""
        (process,) = _PROCESS.unpack_from(self._map, self._process(rank))
        return Path(f"/proc/{process}").exists()

    def _wait_for_readers(self, number: int) -> None:
        cells = [self._cell(rank) for rank in range(1, self._ranks)]
        while any(_CELL.unpack_from(self._map, cell)[0] < number for cell in cells):
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

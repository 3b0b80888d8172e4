"""Two numbers from rank 0 to the ranks of its host, once a step, through a file that all of them have mapped.

A broadcast of 16 bytes costs some hundred microseconds of each rank's step (threads, sockets); this costs a few. Rank 0
writes message ``n`` into slot ``n`` of a ring, each other rank reads the messages in order, waiting where one is not
there yet: so all ranks get the same ``n``-th message, however far they are apart. A slot carries a sum over its
contents, so that one that is half written is not taken for whole, whatever the order in which the processor stores.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from torch.distributed import DistError

SLOTS = 64
_SLOT = struct.Struct("<qqqq")  # number of the message, first value, second value, sum
_CELL = struct.Struct("<q")  # how many messages a rank has read
_MASK = (1 << 62) - 1
#: seconds between looks: while a message is expected any moment, and after a while without one
_SHORT_S, _LONG_S, _LONG_AFTER_S = 0.0001, 0.1, 0.1
_ALIVE_EVERY_S = 1.0


class SourceLostError(DistError):
    """Rank 0 ended while another rank waited for its next message."""


class SharedSlots:
    """The ring. Rank 0 makes the file (``create``) before the others open it; ``nonce`` tells one from an older one."""

    def __init__(self, path: Path, rank: int, ranks: int) -> None:
        self._rank = rank
        self._ranks = ranks
        self._count = 0
        self._source = 0
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.size(ranks))
        self._source, self.nonce = struct.unpack_from("<qq", self._map, 0)

    @staticmethod
    def size(ranks: int) -> int:
        """Bytes of the file."""
        return 16 + SLOTS * _SLOT.size + ranks * _CELL.size

    @classmethod
    def create(cls, path: Path, ranks: int, nonce: int) -> None:
        """Make the file anew, for rank 0's process."""
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.write(struct.pack("<qq", os.getpid(), nonce).ljust(cls.size(ranks), b"\0"))

    def send(self, first: int, second: int) -> None:
        """Rank 0: the next message. Waits only if a rank is 64 messages behind."""
        self._count += 1
        if self._count > SLOTS:
            self._wait_for_readers(self._count - SLOTS)
        check = (self._count * 31 + first * 17 + second) & _MASK
        _SLOT.pack_into(self._map, self._at(self._count), self._count, first, second, check)

    def receive(self, *, patient: bool = False) -> tuple[int, int]:
        """Another rank: the next message, as soon as it is there. ``SourceLostError`` when rank 0 has ended.

        ``patient``: it may take long, so look seldom and use next to no processor time.
        """
        self._count += 1
        began = looked = time.monotonic()
        while True:
            number, first, second, check = _SLOT.unpack_from(self._map, self._at(self._count))
            if number == self._count and check == (number * 31 + first * 17 + second) & _MASK:
                _CELL.pack_into(self._map, self._cell(self._rank), self._count)
                return first, second
            now = time.monotonic()
            if now - looked > _ALIVE_EVERY_S:
                looked = now
                if not self.source_lives():
                    raise SourceLostError("rank 0 has ended, and with it the agreement on commands")
            time.sleep(_LONG_S if patient or now - began > _LONG_AFTER_S else _SHORT_S)

    def source_lives(self) -> bool:
        """Whether rank 0's process is seen from here and alive."""
        return Path(f"/proc/{self._source}").exists()

    def _wait_for_readers(self, number: int) -> None:
        cells = [self._cell(rank) for rank in range(1, self._ranks)]
        while any(_CELL.unpack_from(self._map, cell)[0] < number for cell in cells):
            time.sleep(_SHORT_S)

    def _at(self, number: int) -> int:
        return 16 + number % SLOTS * _SLOT.size

    def _cell(self, rank: int) -> int:
        return 16 + SLOTS * _SLOT.size + rank * _CELL.size

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

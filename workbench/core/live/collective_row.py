"""The collectives of a rank in a file that other processes read while the rank waits in one.

Each rank has one file of fixed size, mapped into memory: a header, a slot for each of its last collectives, one slot
for transfers that have no number, and a slot for each of its last messages to or from one rank. A slot is found by the
group and the number of the collective in it, so the slot of the same collective of another rank is read in a
microsecond.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

#: variable of a rank's environment: the directory of its rank server, which holds the rows
DIRECTORY = "WORKBENCH_RANKS_DIR"
#: sequence lock, number of the collective in its group, CLOCK_MONOTONIC of its start, slot, whether the rank is in it
_HEADER = struct.Struct("<QQdHB")
_HEADER_BYTES = 64
#: key of the group, number in the group, signature, bytes of the description, checksum of the first three
_SLOT = struct.Struct("<QQQHI")
_CHECKED_BYTES = 24
_SLOT_BYTES = 512
_SLOTS = 64
_MOST_TEXT = _SLOT_BYTES - _SLOT.size
FILE_BYTES = _HEADER_BYTES + (2 * _SLOTS + 1) * _SLOT_BYTES
#: in the key of a stream of messages between two ranks, and not in that of a group: these have slots of their own
MESSAGE = 1


def is_message(key: int) -> bool:
    """Returns whether a key is that of a stream of messages between two ranks."""
    return bool(key & MESSAGE)


def _slot(key: int, number: int) -> int:
    """Returns the slot of a collective; ``number`` 0: one without a number."""
    if not number:
        return _SLOTS
    return _SLOTS + 1 + ((key >> 8) + number) % _SLOTS if is_message(key) else (key + number) % _SLOTS


def row_path(directory: Path, rank: int) -> Path:
    """Returns the file of a rank. ``directory``: that of the rank server."""
    return directory / f"collectives-{rank:05d}"


def group_label(name: str, description: str) -> str:
    """Returns what a person calls a process group: the description that it was made with, else torch's name for it."""
    return {"default_pg": "world", "undefined": name}.get(description, description)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a rank does in a collective.

    ``kind``: the function of ``torch.distributed``. ``group``: see ``group_label``. ``members``: its ranks, in words.
    ``shape``, ``dtype``, ``byte_count``: of the tensor that the rank brings ("" and 0: none). ``detail``: reduction or
    source, in words. ``place``: the line of the user's code.
    """

    kind: str
    group: str
    members: str
    shape: str = ""
    dtype: str = ""
    byte_count: int = 0
    detail: str = ""
    place: str = ""

    def encode(self) -> bytes:
        """Returns the description as it stands in a slot; long texts are shortened."""
        fields = asdict(self)
        text = json.dumps(fields).encode()
        for name in ("members", "group", "shape", "place"):
            if len(text) > _MOST_TEXT:
                fields[name] = str(fields[name])[-60:]
                text = json.dumps(fields).encode()
        return text

    def __str__(self) -> str:
        tensor = f" of {self.shape} {self.dtype}" if self.dtype else ""
        return f"{self.kind}{tensor}{', ' + self.detail if self.detail else ''}" + (
            f" ({self.place})" if self.place else ""
        )


@dataclass(frozen=True, kw_only=True)
class LiveCollective:
    """The collective that a rank is in (``waiting``), or was in last.

    ``key``: of the group, equal on all its members. ``number``: its number in its group, from 1 (0: a transfer without
    a number). ``since``: ``time.monotonic()`` of its start, on any process of the host.
    """

    key: int
    number: int
    since: float
    waiting: bool
    description: Description


class RowWriter:
    """Writes the row of this rank. ``path``: see ``row_path``. For one thread."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(FILE_BYTES)
            self._map = mmap.mmap(file.fileno(), FILE_BYTES)
        self._version = 0

    def enter(self, key: int, number: int, signature: int, text: bytes, since: float) -> None:
        """Records that the rank enters a collective. ``key``: of the group, or of the stream of a message, with the bit
        ``MESSAGE``; ``number`` 0: one without a number."""
        slot = _slot(key, number)
        offset = _HEADER_BYTES + slot * _SLOT_BYTES
        self._version += 1
        _HEADER.pack_into(self._map, 0, self._version, number, since, slot, 1)
        self._map[offset + _SLOT.size : offset + _SLOT.size + len(text)] = text
        checked = _SLOT.pack(key, number, signature, len(text), 0)[:_CHECKED_BYTES]
        self._map[offset : offset + _SLOT.size] = _SLOT.pack(key, number, signature, len(text), zlib.crc32(checked))
        self._version += 1
        struct.pack_into("<Q", self._map, 0, self._version)

    def leave(self) -> None:
        """Records that the rank has left the collective that it entered last."""
        self._map[_HEADER.size - 1] = 0


class RowReader:
    """Reads the row of another rank. Raises ``OSError`` when it has none (yet)."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), FILE_BYTES, access=mmap.ACCESS_READ)
            except ValueError as error:  # created, and not of its size yet
                raise FileNotFoundError(str(error)) from error

    def signature(self, key: int, number: int) -> int | None:
        """Returns the signature of a collective.

        None: the rank has not entered it, has forgotten it, or is just writing it.
        """
        found = self._whole(self._offset(key, number))
        return found[2] if found is not None and found[:2] == (key, number) else None

    def describe(self, key: int, number: int) -> Description:
        """Returns the description of a collective whose signature is known."""
        return self._description(self._offset(key, number))

    def live(self) -> LiveCollective | None:
        """Returns the current or last collective of the rank; None when there was none, or while one is written."""
        for _ in range(100):
            version, number, since, slot, waiting = _HEADER.unpack_from(self._map, 0)
            if not version:
                return None
            try:
                description = self._description(_HEADER_BYTES + slot * _SLOT_BYTES)
            except ValueError:
                continue  # half written
            if version % 2 == 0 and _HEADER.unpack_from(self._map, 0)[0] == version:
                key = _SLOT.unpack_from(self._map, _HEADER_BYTES + slot * _SLOT_BYTES)[0]
                return LiveCollective(
                    key=key, number=number, since=since, waiting=bool(waiting), description=description
                )
        return None

    def newest(self) -> dict[int, int]:
        """Returns the number of the last collective that the rank entered, by the key of the group."""
        found: dict[int, int] = {}
        for slot in range(2 * _SLOTS + 1):
            whole = self._whole(_HEADER_BYTES + slot * _SLOT_BYTES)
            if whole is not None and whole[1]:
                key, number, _ = whole
                found[key] = max(number, found.get(key, 0))
        return found

    def _whole(self, offset: int) -> tuple[int, int, int] | None:
        """Returns key, number and signature of a slot; None while it is written, and for one that never was."""
        slot = self._map[offset : offset + _SLOT.size]
        key, number, signature, _, checksum = _SLOT.unpack(slot)
        return (key, number, signature) if checksum == zlib.crc32(slot[:_CHECKED_BYTES]) else None

    @staticmethod
    def _offset(key: int, number: int) -> int:
        return _HEADER_BYTES + _slot(key, number) * _SLOT_BYTES

    def _description(self, offset: int) -> Description:
        length = _SLOT.unpack_from(self._map, offset)[3]
        return Description(**json.loads(self._map[offset + _SLOT.size : offset + _SLOT.size + length]))


def read_live(directory: Path, rank: int) -> LiveCollective | None:
    """Returns the current or last collective of a rank; None when it has recorded none.

    ``directory``: that of the rank server (``RankServer.directory``).
    """
    try:
        return RowReader(row_path(directory, rank)).live()
    except OSError:
        return None

"""Reading Arrow IPC streams that are still being written: whole messages only, without touching them one by one.

The stream format (Arrow Columnar Format, "Encapsulated message format"): the bytes FF FF FF FF, the size of the
metadata as a little-endian int32, the metadata (a flatbuffer ``Message``, padded to 8 bytes), then ``bodyLength`` bytes
of body. A size of 0 ends the stream.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import pyarrow as pa

from workbench.errors import SchemaError
from workbench.records import SCHEMA_VERSION
from workbench.telemetry.small_batches import can_decode, decode

#: bytes read from one file at a time, so that opening a long run needs no copy of it in memory
CHUNK_BYTES = 32 * 2**20
#: batches of fewer bytes, if there are so many, are decoded together
_SMALL_BYTES, _MANY = 8192, 16
_MARK = 0xFFFFFFFF
_BODY_LENGTH_SLOT = 10  # of the fourth field of Message, in its flatbuffer's vtable


def message_end(data: bytes | memoryview, at: int) -> int:
    """Where the message that begins at byte ``at`` ends; -1 when it is not whole, or no message."""
    if len(data) < at + 8:
        return -1
    mark, size = struct.unpack_from("<Ii", data, at)
    if mark != _MARK or size < 0:
        return -1
    start = at + 8
    if size == 0:
        return start
    if len(data) < start + size:
        return -1
    try:
        root = start + struct.unpack_from("<I", data, start)[0]
        vtable = root - struct.unpack_from("<i", data, root)[0]
        has_slot = struct.unpack_from("<H", data, vtable)[0] > _BODY_LENGTH_SLOT
        slot = struct.unpack_from("<H", data, vtable + _BODY_LENGTH_SLOT)[0] if has_slot else 0
        body = struct.unpack_from("<q", data, root + slot)[0] if slot else 0
    except struct.error:  # offsets that lead out of the data: it is damaged
        return -1
    end = start + size + body
    return end if body >= 0 and end <= len(data) else -1


def whole_messages(data: bytes | memoryview, at: int = 0) -> int:
    """Where the last whole message of ``data`` ends, beginning at ``at``."""
    lengths: dict[bytes, int] = {}  # of messages by their metadata, which say it
    size = len(data)
    while at + 8 <= size:
        start = at + 8
        metadata = bytes(data[start : start + struct.unpack_from("<i", data, at + 4)[0]])
        length = lengths.get(metadata)
        if length is None or at + length > size:
            end = message_end(data, at)
            if end <= at:
                break
            length = lengths[metadata] = end - at
        at += length
    return at


@dataclass(slots=True)
class Tail:
    """One growing stream file: how far it is read, and the bytes of its schema once they are there.

    ``has_more``: the last read found more than it took.
    """

    path: str
    table: str
    offset: int = 0
    head: bytes = b""
    has_more: bool = False

    def news(self) -> bytes:
        """Whole batches appended since the last call, at most about ``CHUNK_BYTES`` of them; without the schema.

        Raises ``OSError``, and ``SchemaError`` for a log of a newer version.
        """
        self.has_more = False
        size = os.stat(self.path).st_size
        if size <= self.offset:
            return b""
        descriptor = os.open(self.path, os.O_RDONLY)  # not a file object: hundreds of logs are read twice a second
        try:
            data = os.pread(descriptor, min(CHUNK_BYTES, size - self.offset), self.offset)
            if len(data) == CHUNK_BYTES and message_end(data, 0) < 0:
                data += os.pread(descriptor, size - self.offset - len(data), self.offset + len(data))  # one large batch
        finally:
            os.close(descriptor)
        start = 0
        if not self.head:
            start = message_end(data, 0)
            if start < 0:
                return b""
            check_version(self.path, pa.ipc.read_schema(pa.py_buffer(data[:start])))
            self.head = data[:start]
        end = whole_messages(data, start)
        self.offset += end
        self.has_more = end > 0 and self.offset < size and len(data) >= CHUNK_BYTES
        return data[start:end]


def check_version(path: str, schema: pa.Schema) -> None:
    """``SchemaError`` for a schema of a newer version than this program writes."""
    version = int((schema.metadata or {}).get(b"schema_version", b"0"))
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema version {version}, this version reads up to {SCHEMA_VERSION}: update dist-workbench"
        )


def parse(head: bytes, bodies: list[bytes]) -> pa.Table:
    """The batches of several files that have the same schema, as one table."""
    end = b"\xff\xff\xff\xff\0\0\0\0"  # the end of one file must not end the reading of the next
    pieces = [body.removesuffix(end) for body in bodies]
    size = sum(map(len, pieces))
    schema = pa.ipc.read_schema(pa.py_buffer(head))
    if size > _SMALL_BYTES * _MANY and can_decode(schema) and _are_small(pieces):
        found = decode(schema, b"".join(pieces))
        if found is not None:
            return found
    with pa.ipc.open_stream(pa.py_buffer(b"".join([head, *pieces]))) as reader:
        return reader.read_all()


def _are_small(pieces: list[bytes]) -> bool:
    """Whether the batches are small, as the first of each file say."""
    return sum(message_end(piece, 0) for piece in pieces) < _SMALL_BYTES * len(pieces)

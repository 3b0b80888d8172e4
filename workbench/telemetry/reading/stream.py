"""Reading Arrow IPC streams that are still being written: whole messages only, without touching them one by one.

The stream format (Arrow Columnar Format, "Encapsulated message format"): the bytes FF FF FF FF, the size of the
metadata as a little-endian int32, the metadata (a flatbuffer ``Message``, padded to 8 bytes), then ``bodyLength`` bytes
of body. A size of 0 ends the stream.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from workbench.core.columns import Columns
from workbench.core.records import SCHEMA_VERSION
from workbench.errors import SchemaError
from workbench.telemetry.reading.batches import PREFIX, Batches, decode, layout

#: bytes read from one file at a time, so that opening a long run needs no copy of it in memory
CHUNK_BYTES = 32 * 2**20
_MARK = 0xFFFFFFFF
#: the metadata of the message that ends a stream
END = b""


def message_end(data: bytes | memoryview, at: int) -> int:
    """Where the message that begins at byte ``at`` ends; -1 when it is not whole, or no message."""
    if len(data) < at + PREFIX:
        return -1
    mark, size = struct.unpack_from("<Ii", data, at)
    start = at + PREFIX
    if mark != _MARK or size < 0 or len(data) < start + size:
        return -1
    found = layout(bytes(data[start : start + size]))
    return at + found.length if found is not None and at + found.length <= len(data) else -1


def whole_messages(data: bytes, at: int = 0) -> Batches:
    """The whole messages of ``data``, beginning at byte ``at``."""
    starts: dict[bytes, list[int]] = {}
    lengths: dict[bytes, int] = {}
    size, begin = len(data), at
    while at + PREFIX <= size:
        start = at + PREFIX
        metadata = data[start : start + struct.unpack_from("<i", data, at + 4)[0]]
        length = lengths.get(metadata)
        if length is None or at + length > size:
            end = message_end(data, at)
            if end < 0:
                break
            length = lengths[metadata] = end - at
            starts.setdefault(metadata, [])
        starts[metadata].append(at - begin)
        at += length
    return Batches(data[begin:at], starts)


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

    def news(self) -> Batches | None:
        """Whole batches appended since the last call, at most about ``CHUNK_BYTES`` of them; without the schema;
        None where there are none.

        Raises ``OSError``, and ``SchemaError`` for a log of a newer version.
        """
        self.has_more = False
        size = os.stat(self.path).st_size
        if size <= self.offset:
            return None
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
                return None
            check_version(self.path, data[:start])
            self.head = data[:start]
        found = whole_messages(data, start)
        taken = start + len(found.data)
        self.offset += taken
        self.has_more = taken > 0 and self.offset < size and len(data) >= CHUNK_BYTES
        return found if found.data else None


def check_version(path: str, head: bytes) -> None:
    """``SchemaError`` for a schema of a newer version than this program writes; ``ArrowInvalid`` for no schema."""
    version = _version(head)
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema version {version}, this version reads up to {SCHEMA_VERSION}: update dist-workbench"
        )


@lru_cache(maxsize=256)
def _version(head: bytes) -> int:
    schema = pa.ipc.read_schema(pa.py_buffer(head))
    return int((schema.metadata or {}).get(b"schema_version", b"0"))


def parse(head: bytes, pieces: list[Batches], texts: dict[str, str]) -> Columns:
    """The batches of several files that have the same schema, as columns. ``texts``: all so far; each is held once."""
    found = decode(head, pieces, texts)
    if found is not None:
        return found
    # the end of one file must not end the reading of the next
    bodies = [piece.data[: piece.starts.get(END, [len(piece.data)])[0]] for piece in pieces]
    with pa.ipc.open_stream(pa.py_buffer(b"".join([head, *bodies]))) as reader:
        rows = reader.read_all()
    columns = {field.name: _whole(rows[field.name]) for field in rows.schema}
    return {
        name: _shared(column, texts) if column.type == pa.string() else _values(column)
        for name, column in columns.items()
    }


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; of no chunks, ``combine_chunks`` would import pandas first."""
    return column.combine_chunks() if column.num_chunks else pa.nulls(0, column.type)


def _values(column: pa.Array) -> np.ndarray:
    """A column of numbers, truth values or lists of numbers; ``pa.Array.to_numpy`` would import pandas first, which
    takes a second."""
    if column.null_count:  # of a log that somebody else wrote
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pa.types.is_list(column.type):
        numbers, ends = _values(column.values), _values(column.offsets).tolist()
        lists = np.empty(len(column), dtype=object)
        for place in range(len(column)):
            lists[place] = numbers[ends[place] : ends[place + 1]]
        return lists
    if pa.types.is_boolean(column.type):
        if not len(column):
            return np.empty(0, dtype=bool)
        bits = np.unpackbits(np.frombuffer(column.buffers()[1], dtype=np.uint8), bitorder="little")
        return bits[column.offset : column.offset + len(column)].astype(bool)
    return np.from_dlpack(column)


def _shared(column: pa.Array, texts: dict[str, str]) -> np.ndarray:
    """Texts as objects, of which each is kept once however often it comes."""
    coded = column.dictionary_encode()
    known = np.array([texts.setdefault(text, text) for text in coded.dictionary.to_pylist()], dtype=object)
    return known[_values(coded.indices)] if known.size else np.empty(0, dtype=object)

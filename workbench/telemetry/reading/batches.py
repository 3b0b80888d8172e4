"""Record batches of the Arrow IPC stream format, decoded together without touching them one by one.

A rank writes its log in small batches, and pyarrow needs some ten microseconds for each. But batches of one table that
have the same metadata (a flatbuffer ``Message``) have the same layout: it is read once, and the columns of all such
batches are then gathered at once. (Arrow Columnar Format, "Encapsulated message format" and "RecordBatch message".)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view

from workbench.core.columns import Columns

#: bytes of a message's mark and length of metadata
PREFIX = 8
#: batches of a layout, on average, from which on decoding them together is faster
_ALIKE = 3
_RECORD_BATCH = 3  # of the flatbuffer's union of message headers
#: what kind of column (as ``core.records.columns_of``) a type is, and how many buffers; the first says what is missing
_KINDS = {pa.float64(): ("<f8", 2), pa.int64(): ("<i8", 2), pa.bool_(): ("?", 2), pa.string(): ("U", 3)}


@dataclass(slots=True)
class Batches:
    """Whole messages that follow each other in ``data``. ``starts``: by metadata, where such messages begin."""

    data: bytes
    starts: dict[bytes, list[int]]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a message's metadata say: its ``length`` in bytes, mark and metadata included, how many ``rows`` it has, and
    where its ``buffers`` begin and how long they are. ``plain``: no value is missing, nothing is compressed."""

    length: int
    rows: int = 0
    buffers: tuple[tuple[int, int], ...] = ()
    plain: bool = True


@lru_cache(maxsize=1024)
def layout(metadata: bytes) -> Layout | None:
    """The layout of a message; None for what is no metadata."""
    if not metadata:
        return Layout(PREFIX)  # the mark of the end
    try:
        message = _table(metadata, 0)
        at = _field(metadata, message, 3)
        body = struct.unpack_from("<q", metadata, at)[0] if at else 0
        begin = PREFIX + len(metadata)
        if body < 0:
            return None
        if metadata[_field(metadata, message, 1)] != _RECORD_BATCH:
            return Layout(begin + body)
        batch = _table(metadata, _field(metadata, message, 2))
        at = _field(metadata, batch, 0)
        rows = struct.unpack_from("<q", metadata, at)[0] if at else 0
        missing = [pair[1] for pair in _pairs(metadata, batch, 1)]
        buffers = tuple((begin + offset, length) for offset, length in _pairs(metadata, batch, 2))
        return Layout(begin + body, rows, buffers, not any(missing) and not _field(metadata, batch, 3))
    except (struct.error, IndexError):
        return None


def _table(data: bytes, at: int) -> int:
    """Where the flatbuffer's table is that the offset at ``at`` points to."""
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table is; 0 when it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = int(struct.unpack_from("<H", data, vtable + slot)[0])
    return table + offset if offset else 0


def _pairs(data: bytes, table: int, number: int) -> list[tuple[int, int]]:
    """A field that is a vector of structs of two int64."""
    at = _field(data, table, number)
    if not at:
        return []
    vector = _table(data, at)
    values = struct.unpack_from(f"<{2 * struct.unpack_from('<I', data, vector)[0]}q", data, vector + 4)
    return list(zip(values[::2], values[1::2], strict=True))


@lru_cache(maxsize=256)
def _columns_of(head: bytes) -> list[tuple[str, str, int]] | None:
    """Of a stream with the schema message ``head``: name and kind of each column, and which buffer its first one is.
    None where there is one of another kind: a list."""
    found, place = [], 0
    for field in pa.ipc.read_schema(pa.py_buffer(head)):
        if field.type not in _KINDS:
            return None
        kind, buffers = _KINDS[field.type]
        found.append((field.name, kind, place))
        place += buffers
    return found


def decode(head: bytes, pieces: list[Batches], texts: dict[str, str]) -> Columns | None:
    """The rows of all pieces, in their order, of streams that begin with the schema message ``head``.

    ``texts``: those known so far, of which each is held once. None where something is not as this project's numbers and
    texts are written (lists, values that are missing, compression), or few batches are laid out alike: pyarrow knows
    what to do.
    """
    columns = _columns_of(head)
    if columns is None:
        return None
    starts: dict[bytes, list[int]] = {}
    shift = 0
    for piece in pieces:
        for metadata, places in piece.starts.items():
            starts.setdefault(metadata, []).extend([place + shift for place in places])
        shift += len(piece.data)
    found = [(of, np.array(starts[metadata])) for metadata in starts if (of := layout(metadata)) and of.rows]
    if not all(of.plain for of, _ in found) or _ALIKE * len(found) > sum(at.size for _, at in found):
        return None
    data = np.frombuffer(b"".join([piece.data for piece in pieces]), dtype=np.uint8)
    groups = [(of, sliding_window_view(data, of.length)[at]) for of, at in found]
    order = _rows(found) if len(found) > 1 else None
    out: Columns = {}
    for name, kind, place in columns:
        parts = [_values(of, whole, kind, place, texts) for of, whole in groups]
        values = np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else np.empty(0, object)
        if order is not None:
            out[name] = np.empty_like(values)
            out[name][order] = values
        else:
            out[name] = values
    return out


def _rows(found: list[tuple[Layout, np.ndarray]]) -> np.ndarray:
    """Of rows that stand layout by layout: their numbers in the order of the bytes."""
    starts = np.concatenate([at for _, at in found])
    counts = np.concatenate([np.full(at.size, of.rows) for of, at in found])
    order = np.argsort(starts)
    first = np.empty_like(counts)
    first[order] = np.cumsum(counts[order]) - counts[order]
    return np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _values(of: Layout, whole: np.ndarray, kind: str, place: int, texts: dict[str, str]) -> np.ndarray:
    """A column of messages of one layout; ``whole``: their bytes, a row each. ``place``: the column's first buffer."""
    at, _ = of.buffers[place + 1]
    if kind == "?":
        bits = np.unpackbits(whole[:, at : at + -(-of.rows // 8)], axis=1, count=of.rows, bitorder="little")
        return bits.reshape(-1).view(bool)
    if kind != "U":
        return np.ascontiguousarray(whole[:, at : at + 8 * of.rows]).view(kind).reshape(-1)
    begin, length = of.buffers[place + 2]
    offsets = 4 * (of.rows + 1)
    raw = np.concatenate([whole[:, at : at + offsets], whole[:, begin : begin + length]], axis=1)
    codes: dict[bytes, int] = {}
    batch = [codes.setdefault(text, len(codes)) for text in raw.view(f"V{raw.shape[1]}").reshape(-1).tolist()]
    distinct = np.empty((len(codes), of.rows), dtype=object)
    for number, text in enumerate(codes):
        bounds = np.frombuffer(text, "<i4", of.rows + 1) + offsets
        found = [text[a:b].decode() for a, b in pairwise(bounds)]
        distinct[number] = [texts.setdefault(each, each) for each in found]
    return distinct[batch].reshape(-1)

"""Decoding streams of many small batches of numbers, as short steps leave them, faster than one by one.

What pyarrow does for each batch takes longer than reading its few rows. But batches of a table with as many rows as
each other have the same metadata, byte by byte, if their columns are numbers; and the same metadata mean the same
layout. So each metadata is decoded once, by pyarrow, and the columns of all its batches are then gathered at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

#: bytes of a batch's mark and length of metadata
_PREFIX = 8
_WORD = 8


@dataclass(slots=True)
class _Layout:
    """Batches with the same metadata: their ``rows``, bytes, and where in each a column's values begin."""

    rows: int
    size: int
    columns: list[int]
    starts: list[int] = field(default_factory=list)  # of the batches in the stream
    firsts: list[int] = field(default_factory=list)  # numbers of their first rows


def can_decode(schema: pa.Schema) -> bool:
    """Whether all columns are numbers: of 8 bytes, or true and false."""
    return all(pa.types.is_boolean(f.type) or f.type in (pa.float64(), pa.int64()) for f in schema)


def decode(schema: pa.Schema, data: bytes) -> pa.Table | None:
    """The rows of whole batches that follow each other in ``data``, marks of an end left out; None where a batch is
    not as this project writes them (values that are missing, compression): pyarrow knows what to do."""
    layouts: dict[bytes, _Layout] = {}
    at = total = 0
    while at < len(data):
        (size,) = struct.unpack_from("<i", data, at + 4)
        if size == 0:
            at += _PREFIX
            continue
        metadata = data[at + _PREFIX : at + _PREFIX + size]
        layout = layouts.get(metadata)
        if layout is None:
            layout = _layout(schema, data, at)
            if layout is None:
                return None
            layouts[metadata] = layout
        layout.starts.append(at)
        layout.firsts.append(total)
        total += layout.rows
        at += layout.size
    places = [(layout, np.array(layout.starts), _spread(layout.firsts, layout.rows)) for layout in layouts.values()]
    columns = []
    words = np.frombuffer(data, dtype=np.int64, count=len(data) // _WORD)
    for number, column in enumerate(schema):
        is_bool = pa.types.is_boolean(column.type)
        values = np.empty(total, dtype=bool if is_bool else np.int64)
        for layout, starts, rows in places:
            begins = starts + layout.columns[number]
            if is_bool:
                values[rows] = _bits(data, begins, layout.rows)
            else:
                values[rows] = words[_spread(begins // _WORD, layout.rows)]
        raw = np.packbits(values, bitorder="little") if is_bool else values
        columns.append(pa.Array.from_buffers(column.type, total, [None, pa.py_buffer(raw)]))
    return pa.Table.from_arrays(columns, schema=schema)


def _layout(schema: pa.Schema, data: bytes, at: int) -> _Layout | None:
    whole = pa.py_buffer(memoryview(data)[at:])
    reader = pa.BufferReader(whole)
    batch = pa.ipc.read_record_batch(pa.ipc.read_message(reader), schema)
    columns = []
    for column in batch.columns:
        missing, values = column.buffers()
        start = values.address - whole.address if values is not None else 0
        if missing is not None or column.offset or not 0 <= start < whole.size or start % _WORD or at % _WORD:
            return None
        columns.append(start)
    return _Layout(batch.num_rows, reader.tell(), columns)


def _spread(firsts: list[int] | np.ndarray, length: int) -> np.ndarray:
    """``length`` numbers from each of ``firsts`` on."""
    return (np.asarray(firsts)[:, None] + np.arange(length)).reshape(-1)


def _bits(data: bytes, begins: np.ndarray, count: int) -> np.ndarray:
    packed = np.frombuffer(data, dtype=np.uint8)[_spread(begins, -(-count // 8))]
    return np.unpackbits(packed.reshape(len(begins), -1), axis=1, count=count, bitorder="little").reshape(-1).view(bool)

"""Batches decoded together: the same rows as pyarrow reads, or left to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from workbench.core.columns import Columns
from workbench.rundir.log import schema
from workbench.telemetry.reading.batches import decode
from workbench.telemetry.reading.stream import message_end, parse, whole_messages
from workbench.telemetry.store import Store

STEPS = schema("steps")
TEXTS = ("", "forward", "é€", "{}", "a" * 40)


def columns(generator: np.random.Generator, rows: int, of: pa.Schema = STEPS) -> list[pa.Array]:
    """Any bits as numbers, so also NaN of every kind; texts in any order."""
    found = []
    for column in of:
        if pa.types.is_boolean(column.type):
            found.append(pa.array(generator.random(rows) < 0.5, pa.bool_()))
        elif pa.types.is_string(column.type):
            found.append(pa.array(generator.permutation([TEXTS[row % 5] for row in range(rows)]).tolist(), pa.string()))
        else:
            bits = generator.integers(-(2**63), 2**63, rows, dtype=np.int64)
            found.append(pa.array(bits.view(np.float64 if column.type == pa.float64() else np.int64)))
    return found


def written(batches: list[list[pa.Array]], of: pa.Schema = STEPS, **options: Any) -> tuple[bytes, bytes]:
    """The bytes of a stream: its schema, and its batches with the mark of the end."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, of, **options) as file:
        for arrays in batches:
            file.write_batch(pa.RecordBatch.from_arrays(arrays, schema=of))
    data = sink.getvalue()
    head = message_end(data, 0)
    return data[:head], data[head:]


def decoded(head: bytes, *bodies: bytes) -> Columns | None:
    return decode(head, [whole_messages(body) for body in bodies], {})


def same(found: Columns | None, expected: pa.Table) -> None:
    assert found is not None and list(found) == expected.column_names
    for name, values in found.items():
        other = expected[name].to_numpy()
        if values.dtype == object:
            assert values.tolist() == other.tolist()
        else:
            assert values.dtype == other.dtype and values.tobytes() == other.tobytes()


def read(head: bytes, body: bytes) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(head + body)) as file:
        return file.read_all()


@pytest.mark.parametrize("table", ["steps", "devices", "events"])
@pytest.mark.parametrize("sizes", [[5] * 40, [4, 5, 0, 5, 6, 1, 9, 17, 5, 8, 4] * 8, [300, 1, 1, 300] * 3, []])
def test_the_rows_are_those_that_pyarrow_reads_in_their_order(sizes: list[int], table: str) -> None:
    generator, of = np.random.default_rng(len(sizes)), schema(table)
    head, body = written([columns(generator, size, of) for size in sizes], of)
    same(decoded(head, body), read(head, body))


def test_pieces_of_several_files_follow_each_other_and_marks_of_an_end_are_passed_over() -> None:
    generator, of = np.random.default_rng(3), schema("devices")
    bodies = [written([columns(generator, size, of) for size in (3, 4, 4, 3)], of)[1] for _ in range(3)]
    head, _ = written([], of)
    same(decoded(head, *bodies), pa.concat_tables([read(head, body) for body in bodies]))


def test_what_is_not_as_the_log_writes_it_is_left_to_pyarrow() -> None:
    generator = np.random.default_rng(4)
    arrays = columns(generator, 4)
    place = STEPS.get_field_index("loss")
    missing = [*arrays[:place], pa.array([1.0, None, 2.0, 3.0]), *arrays[place + 1 :]]
    head, body = written([arrays, missing])
    assert decoded(head, body) is None
    loss = parse(head, [whole_messages(body)], {})["loss"]
    assert np.isnan(loss[5]) and loss[[4, 6, 7]].tolist() == [1.0, 2.0, 3.0]
    packed = pa.ipc.IpcWriteOptions(compression="lz4")
    assert decoded(*written([columns(generator, 4000)], options=packed)) is None
    assert decoded(*written([], schema("histograms"))) is None
    assert decoded(*written([columns(generator, size) for size in range(1, 9)])) is None, "no two are laid out alike"


def test_a_store_reads_batches_that_grow_and_end_in_the_middle(tmp_path: Path) -> None:
    generator, of = np.random.default_rng(5), schema("events")
    head, body = written([columns(generator, 5, of) for _ in range(400)], of)
    file = tmp_path / "rank-00000" / "events.arrow"
    file.parent.mkdir()
    expected, store = read(head, body), Store(tmp_path)
    for end in (len(body) // 3 + 5, len(body) - 100, len(body)):
        file.write_bytes(head + body[:end])
        assert len(whole_messages(body[:end]).data) <= end
        store.refresh()
    same(store.table("events"), expected)
    held = {id(text) for name in ("kind", "name", "value", "who") for text in store.table("events")[name]}
    assert len(held) == 5, "each text is held once"

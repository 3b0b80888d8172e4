"""Many small batches decoded together: the same rows as pyarrow reads, or left to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from workbench.rank_log import schema
from workbench.telemetry import stream
from workbench.telemetry.small_batches import can_decode, decode
from workbench.telemetry.store import Store
from workbench.telemetry.stream import message_end, whole_messages

STEPS = schema("steps")


def columns(generator: np.random.Generator, rows: int) -> list[pa.Array]:
    """Any bits as numbers, so also NaN of every kind."""
    found = []
    for column in STEPS:
        if pa.types.is_boolean(column.type):
            found.append(pa.array(generator.random(rows) < 0.5, pa.bool_()))
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


def same(found: pa.Table, expected: pa.Table) -> None:
    assert found.num_rows == expected.num_rows and found.schema.equals(expected.schema)
    for name in expected.column_names:
        np.testing.assert_array_equal(
            *(np.frombuffer(t[name].to_numpy().tobytes(), np.uint8) for t in (found, expected))
        )


def read(head: bytes, body: bytes) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(head + body)) as file:
        return file.read_all()


@pytest.mark.parametrize("sizes", [[5] * 40, [1], [4, 5, 5, 6, 1, 9, 17, 5, 8, 4] * 8, [300, 1, 300]])
def test_the_rows_are_those_that_pyarrow_reads_in_their_order(sizes: list[int]) -> None:
    generator = np.random.default_rng(len(sizes))
    head, body = written([columns(generator, size) for size in sizes])
    assert can_decode(STEPS)
    same(decode(STEPS, body), read(head, body))


def test_marks_of_an_end_between_files_are_passed_over() -> None:
    generator = np.random.default_rng(3)
    bodies = [written([columns(generator, 3), columns(generator, 4)])[1] for _ in range(3)]
    head, _ = written([])
    same(decode(STEPS, b"".join(bodies)), pa.concat_tables([read(head, body) for body in bodies]))


def test_what_is_not_as_the_log_writes_it_is_left_to_pyarrow() -> None:
    generator = np.random.default_rng(4)
    arrays = columns(generator, 4)
    place = STEPS.get_field_index("loss")
    missing = [*arrays[:place], pa.array([1.0, None, 2.0, 3.0]), *arrays[place + 1 :]]
    assert decode(STEPS, written([arrays, missing])[1]) is None
    packed = pa.ipc.IpcWriteOptions(compression="lz4")
    assert decode(STEPS, written([columns(generator, 4000)], options=packed)[1]) is None
    assert not can_decode(schema("events"))


def test_a_store_reads_small_batches_that_grow_and_end_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(stream, "decode", lambda *given: used.append(1) or decode(*given))
    head, body = written([columns(np.random.default_rng(5), 5) for _ in range(400)])
    file = tmp_path / "rank-00000" / "steps.arrow"
    file.parent.mkdir()
    expected, store = read(head, body), Store(tmp_path)
    for end in (len(body) // 3 + 5, len(body) - 100, len(body)):
        file.write_bytes(head + body[:end])
        assert whole_messages(body[:end]) <= end
        store.refresh()
    assert len(used) == 2, "the last batch alone is read as ever"
    found = store.table("steps")
    for name in expected.column_names:
        assert found[name].tobytes() == expected[name].to_numpy().tobytes()

"""The row of a rank's collectives: one process writes, another reads; a slot that is half written says nothing."""

from __future__ import annotations

from pathlib import Path

from workbench.core.live.collective_row import Description, RowReader, RowWriter, read_live, row_path


def test_a_row_is_read_while_its_rank_waits(tmp_path: Path) -> None:
    assert read_live(tmp_path, 3) is None
    writer = RowWriter(row_path(tmp_path, 3))
    assert read_live(tmp_path, 3) is None
    told = Description(kind="all_reduce", group="0", members="ranks 0-3", shape="2x4", dtype="float32", byte_count=32)
    for number in range(1, 100):
        writer.enter(7 << 8, number, 5000 + number, told.encode(), since=2.5)
    live = read_live(tmp_path, 3)
    assert live is not None
    assert (live.number, live.since, live.waiting, live.description) == (99, 2.5, True, told)
    writer.leave()
    left = read_live(tmp_path, 3)
    assert left is not None and not left.waiting
    reader = RowReader(row_path(tmp_path, 3))
    assert [reader.signature(7 << 8, number) for number in (99, 36, 35, 100)] == [5099, 5036, None, None]
    assert reader.signature(8 << 8, 99) is None and reader.describe(7 << 8, 99) == told


def test_a_slot_that_is_half_written_has_no_signature(tmp_path: Path) -> None:
    path = row_path(tmp_path, 0)
    RowWriter(path).enter(1, 1, 77, b"{}", since=0.0)
    reader, whole = RowReader(path), path.read_bytes()
    assert reader.signature(1, 1) == 77
    place = whole.index((77).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.seek(place)
        file.write((76).to_bytes(8, "little"))
    assert reader.signature(1, 1) is None


def test_long_texts_are_shortened() -> None:
    long = Description(kind="all_gather", group="g" * 300, members="ranks " + "1, " * 300, place="x" * 300)
    assert len(long.encode()) < 480

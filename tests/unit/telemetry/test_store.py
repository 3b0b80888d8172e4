"""The store on logs that grow, end in the middle, are old, are long, or vanish."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.fake_run import make_fake_run
from workbench.core.config import SPEC_FILE, ParallelPlan, TrainSpec
from workbench.core.records import DeviceSample, Event, HistogramStats, StepRecord
from workbench.errors import ConfigError, RunDirectoryError, SchemaError
from workbench.rundir.log import RankLogWriter, _TableFile, rank_directory, schema
from workbench.telemetry.reading import stream
from workbench.telemetry.reading.stream import message_end, whole_messages
from workbench.telemetry.store import Store


def step(number: int, rank: int = 0, **more: Any) -> StepRecord:
    values = {"time": float(number), "loss": 1 / number, "lr": 0.1, "grad_sq": 4.0, "tokens": 8, "step_time_ms": 50.0}
    return StepRecord(**{**values, "step": number, "rank": rank, "data_wait_ms": 1.0, **more})


def sample(number: int, rank: int, cpu: float = 50.0) -> DeviceSample:
    return DeviceSample(time=float(number), rank=rank, step=number, phase="data", cpu_percent=cpu, rss_bytes=5,
                        threads=3, net_sent_bytes=1, net_received_bytes=2, disk_read_bytes=3, disk_write_bytes=4,
                        device="cpu")  # fmt: skip


def write(run: Path, rank: int, table: str, rows: list[Any], batch: int = 50) -> Path:
    directory = rank_directory(run, rank)
    directory.mkdir(parents=True, exist_ok=True)
    file = _TableFile(directory / f"{table}.arrow", table)
    for first in range(0, len(rows), batch):
        file.append(rows[first : first + batch])
    file.close()
    return directory / f"{table}.arrow"


def opened(run: Path, **options: Any) -> Store:
    store = Store(run, **options)
    store.refresh()
    return store


def test_message_ends_are_those_that_arrow_sees(tmp_path: Path) -> None:
    data = write(tmp_path, 0, "steps", [step(number) for number in range(1, 301)], batch=7).read_bytes()
    source, at = pa.BufferReader(data), 0
    while True:
        try:
            pa.ipc.read_message(source)
        except EOFError:
            break
        assert message_end(data, at) == source.tell()
        at = source.tell()
    assert message_end(data, at) == at + 8 == len(data), "the mark of the end"
    assert whole_messages(data).data == data
    assert len(whole_messages(data[:-9]).data) < len(data) - 8
    for cut in range(len(data) - 60, len(data)):
        assert len(whole_messages(data[:cut]).data) <= cut
    assert message_end(b"garbage, not a message", 0) == -1


def test_every_cut_of_a_file_gives_the_whole_batches_and_then_the_rest(tmp_path: Path) -> None:
    file = write(
        tmp_path, 0, "events", [Event(time=1.0, step=i, rank=0, kind="k", name="n") for i in range(9)], batch=3
    )
    data = file.read_bytes()
    for cut in range(0, len(data), 13):
        file.write_bytes(data[:cut])
        store = opened(tmp_path)
        few = store.rows("events")
        assert few % 3 == 0
        file.write_bytes(data)
        assert store.refresh() == 9 - few
        assert store.table("events")["step"].tolist() == list(range(9))


def test_large_files_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(3):
        write(tmp_path, rank, "steps", [step(number, rank) for number in range(1, 2001)], batch=40)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr("workbench.telemetry.store.CHUNK_BYTES", 10_000)
    store = Store(tmp_path)
    assert store.refresh() == 6000 and store.refresh() == 0
    steps = store.table("steps")
    for rank in range(3):
        assert steps["step"][steps["rank"] == rank].tolist() == list(range(1, 2001))
    monkeypatch.setattr(stream, "CHUNK_BYTES", 500)  # less than one batch
    assert opened(tmp_path).rows("steps") == 6000


def test_ranks_and_tables_that_appear_later_are_found(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for rank in (1, 0):
        write(tmp_path, rank, "steps", [step(1, rank)])
        assert store.refresh() == 1
        write(tmp_path, rank, "devices", [sample(1, rank)])
        assert store.refresh() == 1
    assert store.table("steps")["rank"].tolist() == [1, 0]


def test_a_file_in_the_place_of_a_log_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 0, "steps", [step(1)])
    (tmp_path / "rank-00001").write_text("in the way")
    assert opened(tmp_path).rows("steps") == 1


def old_schema(table: str, without: set[str]) -> pa.Schema:
    kept = [field for field in schema(table) if field.name not in without]
    return pa.schema(kept, metadata={"schema_version": "1", "table": table})


def test_an_old_log_gets_the_defaults_of_the_records(tmp_path: Path) -> None:
    new = {"skipped", "loss_scale", "clip", "framework_norm", "monitor_ms"}
    old = old_schema("steps", new)
    (tmp_path / "rank-00000").mkdir()
    with pa.ipc.new_stream(tmp_path / "rank-00000" / "steps.arrow", old) as written:
        columns = [pa.array([getattr(step(number), name) for number in (1, 2)]) for name in old.names]
        written.write_batch(pa.RecordBatch.from_arrays(columns, schema=old))
    write(tmp_path, 1, "steps", [step(1, 1, clip=2.0)])
    steps = opened(tmp_path).table("steps")
    assert steps["step"].tolist() == [1, 2, 1]
    assert steps["clip"].tolist() == [0.0, 0.0, 2.0]
    assert steps["skipped"].dtype == bool and not steps["skipped"].any()
    for field in fields(StepRecord):
        if field.name in new:
            np.testing.assert_equal(steps[field.name][0], field.default)


def test_a_file_without_a_column_that_was_always_there_is_no_log(tmp_path: Path) -> None:
    old = old_schema("steps", {"loss"})
    (tmp_path / "rank-00000").mkdir()
    with pa.ipc.new_stream(tmp_path / "rank-00000" / "steps.arrow", old) as written:
        columns = [pa.array([getattr(step(1), name)]) for name in old.names]
        written.write_batch(pa.RecordBatch.from_arrays(columns, schema=old))
    with pytest.raises(SchemaError, match="no column 'loss'"):
        opened(tmp_path)


def test_lists_and_texts_come_back(tmp_path: Path) -> None:
    rows = [
        HistogramStats(step=i, rank=0, layer=f"layer.{i % 3}", scope="local", sharded="", first_exponent=-i,
                       counts=list(range(i)), zero_count=0, nonfinite_count=0, underflow_count=0)
        for i in range(20)
    ]  # fmt: skip
    write(tmp_path, 0, "histograms", rows, batch=6)
    found = opened(tmp_path).table("histograms")
    assert [list(counts) for counts in found["counts"]] == [row.counts for row in rows]
    assert found["layer"].tolist() == [row.layer for row in rows]
    assert found["layer"][0] is found["layer"][9], "each text is held once"


@pytest.mark.parametrize("is_over", [False, True])
def test_a_batch_that_ends_as_a_stream_does_is_whole(tmp_path: Path, is_over: bool) -> None:
    """32 true values are the bytes of the mark at the end of a stream."""
    mark = b"\xff\xff\xff\xff\0\0\0\0"
    for rank in range(2):
        rows = [
            HistogramStats(step=1, rank=rank, layer=f"block.{i}", scope="reduced", sharded="", first_exponent=-9,
                           counts=[1, 2], zero_count=0, nonfinite_count=0, underflow_count=0, sampled=True)
            for i in range(32)
        ]  # fmt: skip
        file = write(tmp_path, rank, "histograms", rows)
        data = file.read_bytes()
        assert data.endswith(2 * mark), "the last values, and the mark after them"
        file.write_bytes(data if is_over else data.removesuffix(mark))
    found = opened(tmp_path).table("histograms")
    assert found["sampled"].tolist() == [True] * 64 and list(found["counts"][63]) == [1, 2]


def test_columns_cannot_be_changed_by_a_reader_and_keep_their_rows(tmp_path: Path) -> None:
    with RankLogWriter(tmp_path, 0, flush_s=60) as log:
        log.append(step(1))
        log.flush()
        store = opened(tmp_path)
        first = store.table("steps")["step"]
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 7
        for number in range(2, 2000):
            log.append(step(number))
    store.refresh()
    assert first.tolist() == [1]
    assert store.table("steps")["step"].tolist() == list(range(1, 2000))


def test_a_long_run_is_thinned_for_display_and_keeps_its_extremes(tmp_path: Path) -> None:
    ranks, steps, most = 4, 3000, 2000
    for rank in range(ranks):
        rows = [step(number, rank, loss=99.0 if (number, rank) == (777, 2) else 1.0) for number in range(1, steps + 1)]
        write(tmp_path, rank, "steps", rows)
        write(tmp_path, rank, "devices", [sample(number, rank, 100.0 + (number == 555)) for number in range(1, 3000)])
        write(tmp_path, rank, "events", [Event(time=1.0, step=i, rank=rank, kind="k", name="n") for i in range(900)])
    store, whole = opened(tmp_path, most=most), opened(tmp_path)
    held = store.table("steps")
    assert held["step"].size <= most and whole.table("steps")["step"].size == ranks * steps
    assert store.rows("steps") == ranks * steps, "a cursor counts what was read"
    assert set(np.bincount(held["step"])[1:]) == {0, ranks}, "a step is held by all ranks or none"
    assert 99.0 in held["loss"]
    assert set(range(steps - most // 4 // ranks + 1, steps + 1)) <= set(held["step"].tolist()), "the newest all stay"
    assert 101.0 in store.table("devices")["cpu_percent"] and store.table("devices")["step"].size <= most
    assert store.table("events")["step"].size == ranks * 900, "no event is left out"


def test_a_cursor_of_a_thinned_table_gives_each_new_row_once(tmp_path: Path) -> None:
    store, cursor, seen = Store(tmp_path, most=100), 0, []
    with RankLogWriter(tmp_path, 0, flush_s=60) as log:
        for number in range(1, 1001):
            log.append(step(number))
            if number % 10 == 0:
                log.flush()
                store.refresh()
                columns, cursor = store.since("steps", cursor)
                seen += columns["step"].tolist()
    assert seen == list(range(1, 1001))
    assert store.table("steps")["step"].size <= 100


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, 0, "steps", [step(1)])
    store = opened(run)
    shutil.rmtree(run / "rank-00000")
    with pytest.raises(RunDirectoryError, match="rank-00000"):
        store.refresh()
    store = opened(tmp_path)
    shutil.rmtree(run)
    os.rmdir(tmp_path)
    with pytest.raises(RunDirectoryError, match="moved or deleted"):
        store.refresh()


def test_a_spec_is_assumed_only_where_none_can_be_read(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=5, layers=1)
    store = Store(run)
    store.assumed = TrainSpec(plan=ParallelPlan(ranks=1), batch_size=1)
    assert store.spec.name == "fake", "a spec that can be read wins"
    (run / SPEC_FILE).write_text("no spec", encoding="utf-8")
    damaged = Store(run)
    with pytest.raises(ConfigError):
        damaged.spec  # noqa: B018  (reading it raises)
    damaged.assumed = store.assumed
    assert damaged.spec is store.assumed
    (run / SPEC_FILE).unlink()
    assert Store(run).assumed is None

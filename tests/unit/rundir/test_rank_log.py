"""The log written by one writer, read by the store and, for independence, by pyarrow alone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.waiting import WAIT_S, until
from workbench.core.records import (
    SCHEMA_VERSION,
    TABLES,
    ActivationStats,
    AttentionStats,
    CollectiveRecord,
    DeviceSample,
    Event,
    GradientSketch,
    GradientStats,
    HistogramStats,
    LayerNorms,
    MediaRecord,
    PhaseRecord,
    Record,
    RouterStats,
    SpectralStats,
    StepRecord,
    ValueRecord,
    WeightStats,
)
from workbench.errors import RunDirectoryError, SchemaError
from workbench.rundir import log as rank_log
from workbench.rundir.log import _ARROW, RankLogWriter, _array, rank_directory, schema
from workbench.telemetry.store import Store


def step(number: int, rank: int = 0) -> StepRecord:
    return StepRecord(time=float(number), step=number, rank=rank, loss=1 / number, lr=0.1, grad_sq=4.0, tokens=8,
                      step_time_ms=50.0, data_wait_ms=1.0)  # fmt: skip


def test_a_writer_goes_on_in_a_log_that_was_cut_off(tmp_path: Path) -> None:
    with RankLogWriter(tmp_path, 0) as log:
        for number in (1, 2):
            log.append(step(number))
        log.event("state", "restarting")
        log.goes_on = True
    file = rank_directory(tmp_path, 0) / "steps.arrow"
    whole = file.read_bytes()
    store = Store(tmp_path)
    store.refresh()
    file.write_bytes(whole + whole[-40:-8])  # the rank was killed while it wrote
    with RankLogWriter(tmp_path, 0, append=True) as log:
        assert log.taken() == {"steps": 2}
        log.event("checkpoint", "restored", {"rows": log.taken()}, step=1)
        log.append(step(2))
        log.append(step(3))
        log.append(LayerNorms(step=2, rank=0, scope="local", layout=2, norms=[0.5]))
    assert file.read_bytes().startswith(whole)
    with pa.ipc.open_stream(file) as reader:
        assert reader.read_all()["step"].to_pylist() == [1, 2, 2, 3]
    store.refresh()
    both = [store, Store(tmp_path)]
    both[1].refresh()
    for one in both:
        assert one.table("steps")["step"].tolist() == [1, 2, 3]
        assert one.table("events")["name"].tolist() == ["restarting", "restored"]
        assert one.table("layer_norms")["step"].tolist() == [2]


def test_a_log_of_another_version_is_not_cut(tmp_path: Path) -> None:
    rank_directory(tmp_path, 0).mkdir()
    file = rank_directory(tmp_path, 0) / "steps.arrow"
    with pa.ipc.new_stream(file, pa.schema([("step", pa.int64())])) as other:
        other.write_table(pa.table({"step": [1, 2]}))
    before = file.read_bytes()
    with pytest.raises(RunDirectoryError, match="another version"):
        RankLogWriter(tmp_path, 0, append=True)
    assert file.read_bytes() == before


def test_every_record_type_comes_back(tmp_path: Path) -> None:
    records = [
        step(1),
        DeviceSample(time=1.0, rank=0, step=1, phase="data", cpu_percent=99.0, rss_bytes=5, threads=3, net_sent_bytes=1,
                     net_received_bytes=2, disk_read_bytes=3, disk_write_bytes=4, device="cpu"),
        GradientStats(step=1, rank=0, layer="a.<b>", scope="local", sharded="tp", numel=4, sum=1.0, sum_sq=2.0,
                      max_abs=1.5, zero_count=1, nonfinite_count=0),
        LayerNorms(step=1, rank=0, scope="local", layout=2, norms=[0.5, 4.0]),
        HistogramStats(step=1, rank=0, layer="a", scope="local", sharded="", first_exponent=-20, counts=[1, 0, 3],
                       zero_count=1, nonfinite_count=0, underflow_count=2),
        GradientSketch(step=1, rank=0, layer="a", sharded="", values=[0.5, -2.0]),
        WeightStats(step=1, rank=0, layer="a", sharded="", numel=4, weight_sq=1.0, update_sq=0.1, moment1_sq=0.2,
                    moment2_sq=0.3),
        ActivationStats(step=1, rank=0, layer="a", what="output", micro_batch=-1, sharded="tp", numel=4, sum=1.0,
                        sum_sq=2.0, max_abs=1.5, zero_count=1, nonfinite_count=0, underflow_count=2, overflow_count=3),
        AttentionStats(step=1, rank=0, layer="a", micro_batch=0, sharded="", queries=16, entropy_sum=8.0,
                       uniform_sum=9.0, max_logit=3.0),
        RouterStats(step=1, rank=0, layer="gate", micro_batch=0, tokens=8, top_k=2, load=[9, 7], entropy_sum=4.0),
        SpectralStats(step=1, rank=0, layer="a", weight_sq=9.0, sigma_max=2.5),
        PhaseRecord(step=1, rank=0, phase="forward", micro_batch=-1, start_ms=0.5, duration_ms=4.0),
        CollectiveRecord(step=1, rank=0, kind="all_reduce", group="dp", group_size=2, bytes=64, start_ms=1.0,
                         duration_ms=2.0, exposed_ms=1.0),
        ValueRecord(step=1, rank=0, name="own/é", reduce="none", value=float("nan"), count=3),
        MediaRecord(step=1, rank=0, name="own", kind="text", text="a\nb"),
        Event(time=1.0, step=1, rank=0, kind="sample", name="text", value=json.dumps("é\n")),
    ]  # fmt: skip
    with RankLogWriter(tmp_path, 0) as log:
        for record in records:
            log.append(record)
    store = Store(tmp_path)
    assert store.refresh() == len(TABLES)
    for record, table in zip(records, TABLES, strict=True):
        row = {name: values[0] for name, values in store.table(table).items()}
        expected = {name: getattr(record, name) for name in row}
        np.testing.assert_equal(row, expected)


def test_columns_are_those_that_pyarrow_makes(tmp_path: Path) -> None:
    texts = ("", "é\n", "a" * 300, "layer.<0>")
    for kind, values in (
        ("U", texts), ("f8", (0.5, float("inf"), -1e300)), ("i8", (2**62, -1, 0)), ("?", (True, False) * 9),
        ("L", ([1, 2], [], [3])),
    ):  # fmt: skip
        made = _array(values, kind)
        made.validate(full=True)
        assert made.equals(pa.array(values, _ARROW[kind]))


def test_logs_are_written_and_read_without_pandas(tmp_path: Path) -> None:
    """Importing it takes a second or more, at the end of a training too: also for tables of which no row is there."""
    code = (
        "import sys; import pyarrow as pa; from tests.unit.rundir.test_rank_log import step\n"
        "from workbench.core.records import TABLES; from workbench.telemetry.store import Store\n"
        "from workbench.rundir.log import RankLogWriter, rank_directory, schema\n"
        "with RankLogWriter(sys.argv[1], 0) as log: log.append(step(1))\n"
        "rank_directory(sys.argv[1], 1).mkdir()\n"
        "for table in TABLES:\n"
        "    pa.ipc.new_stream(rank_directory(sys.argv[1], 1) / f'{table}.arrow', schema(table)).close()\n"
        "store = Store(sys.argv[1]); store.refresh(); assert store.rows('steps') == 1\n"
        "assert 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path.cwd(), check=False)
    assert done.returncode == 0
    store = Store(tmp_path)
    store.refresh()
    assert store.table("steps")["step"].tolist() == [1]


def test_pyarrow_alone_reads_the_file(tmp_path: Path) -> None:
    with RankLogWriter(tmp_path, 3) as log:
        for number in range(1, 101):
            log.append(step(number, rank=3))
    with pa.ipc.open_stream(rank_directory(tmp_path, 3) / "steps.arrow") as reader:
        table = reader.read_all()
    assert table["step"].to_pylist() == list(range(1, 101))
    assert table.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()


def test_the_store_follows_a_growing_log_and_each_row_comes_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.refresh() == 0
    cursor, seen = 0, []
    with RankLogWriter(tmp_path, 0, flush_s=60) as log:
        for number in range(1, 11):
            log.append(step(number))
            if number % 3 == 0:
                log.flush()
                store.refresh()
                columns, cursor = store.since("steps", cursor)
                seen += columns["step"].tolist()
    store.refresh()
    columns, cursor = store.since("steps", cursor)
    assert seen + columns["step"].tolist() == list(range(1, 11)) == store.table("steps")["step"].tolist()
    assert store.since("steps", 4)[0]["step"].tolist() == list(range(5, 11))


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_truncated_tail_is_read_up_to_the_last_whole_batch(tmp_path: Path, cut: int) -> None:
    with RankLogWriter(tmp_path, 0, flush_s=60) as log:
        for number in (1, 2):
            log.append(step(number))
            log.flush()
        file = log.directory / "steps.arrow"
        whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    store = Store(tmp_path)
    store.refresh()
    assert store.table("steps")["step"].tolist() == [1]
    file.write_bytes(whole)
    store.refresh()
    assert store.table("steps")["step"].tolist() == [1, 2]


def test_a_killed_writer_loses_at_most_the_last_flush(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom tests.unit.rundir.test_rank_log import step\n"
        "from workbench.rundir.log import RankLogWriter\n"
        "log = RankLogWriter(sys.argv[1], 0)\n"
        "for number in range(1, 6): log.append(step(number))\n"
        "log.flush(); print('written', flush=True); log.append(step(6)); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert child.stdout is not None and child.stdout.readline() == b"written\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = Store(tmp_path)
    store.refresh()
    assert store.table("steps")["step"].tolist()[:5] == [1, 2, 3, 4, 5]


def test_what_does_not_fit_is_dropped_counted_and_told(tmp_path: Path) -> None:
    with RankLogWriter(tmp_path, 0, flush_s=60, capacity=5) as log:
        for number in range(1, 9):
            log.append(step(number))
    store = Store(tmp_path)
    store.refresh()
    assert store.table("steps")["step"].tolist() == [1, 2, 3, 4, 5]
    events = store.table("events")
    assert (events["kind"][0], events["name"][0], json.loads(events["value"][0])) == ("log", "dropped", 3)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "rank-00000").write_text("in the way")
    with pytest.raises(RunDirectoryError, match="rank-00000"):
        RankLogWriter(tmp_path, 0)


def test_a_log_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "rank-00000"
    directory.mkdir()
    newer = schema("steps").with_metadata({"schema_version": "99"})
    with pa.ipc.new_stream(directory / "steps.arrow", newer):
        pass
    with pytest.raises(SchemaError, match="version 99"):
        Store(tmp_path).refresh()


def test_the_thread_writes_by_itself_and_ends(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with RankLogWriter(tmp_path, 0, flush_s=0.02) as log:
        log.append(step(1))
        until(store.refresh)
        assert store.rows("steps") == 1
        thread = log._thread
    assert not thread.is_alive()


def test_rows_wait_for_their_share_of_a_processor_and_an_event_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_log, "MOST_FLUSH_S", 3600)
    store = Store(tmp_path)
    with RankLogWriter(tmp_path, 0, flush_s=0.01, share=1e-9) as log:
        for number in (1, 2):  # an event for each, as the first write may come between a step and its event
            log.append(step(number))
            log.event("log", "seen")
            until(lambda number=number: (store.refresh(), store.rows("events"))[1] >= number)
            assert store.rows("steps") == number
        log.append(step(3))
        time.sleep(0.1)  # ten chances to write, none of which is taken
        store.refresh()
        assert store.rows("steps") == 2
    store.refresh()
    assert store.rows("steps") == 3


def test_a_record_that_no_column_takes_is_left_out_and_told_once(tmp_path: Path) -> None:
    """Whoever made it: the records beside it, and those after it, are in the log."""
    odd = replace(step(2), tokens="many")
    with RankLogWriter(tmp_path, 0, flush_s=60.0) as log:
        for record in (step(1), odd, step(3)):
            log.append(record)
        log.flush()
        log.append(replace(step(4), lr=[0.1]))
        log.append(step(5))
    assert log.dropped == 2 and log.failure is None
    store = Store(tmp_path)
    store.refresh()
    assert store.table("steps")["step"].tolist() == [1, 3, 5]
    events = store.table("events")
    assert list(zip(events["kind"], events["name"], strict=True)) == [("warning", "record_refused")]
    assert "records of the table 'steps' could not be written and are missing: " in json.loads(events["value"][0])


def test_a_writer_that_cannot_go_on_ends_the_log_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[OSError] = []
    came = threading.Event()

    def tell(error: OSError) -> None:
        told.append(error)
        came.set()

    def fails() -> None:
        raise SystemError("an interpreter's own fault")

    log = RankLogWriter(tmp_path, 0, flush_s=0.01, on_failure=tell)
    monkeypatch.setattr(log, "flush", fails)
    assert came.wait(WAIT_S)
    monkeypatch.undo()
    log.append(step(1))
    log.close()
    assert [str(error) for error in told] == ["SystemError: an interpreter's own fault"]
    assert log.failure is told[0] and log.dropped == 1


def test_who_sees_an_event_sees_the_rows_that_were_taken_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the batch that is written begins with an event."""
    tables: list[str] = []
    append = rank_log._TableFile.append

    def noted(file: rank_log._TableFile, rows: list[Record]) -> list[str]:
        tables.append(type(rows[0]).__name__)
        return append(file, rows)

    monkeypatch.setattr(rank_log._TableFile, "append", noted)
    with RankLogWriter(tmp_path, 0, flush_s=60.0) as log:
        log.event("log", "seen")
        log.append(step(1))
        log.event("state", "paused")
        log.flush()
    assert tables == ["StepRecord", "Event"]

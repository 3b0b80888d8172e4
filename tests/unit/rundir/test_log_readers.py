"""A rank's log read by others' programs, without ours."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pytest

from tests.unit.rundir.test_rank_log import step
from workbench.rundir.log import RankLogWriter


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A log of 30 steps in three batches."""
    with RankLogWriter(tmp_path, 0, flush_s=60) as log:
        for number in range(1, 31):
            log.append(step(number))
            if number % 10 == 0:
                log.flush()
    return log.directory / "steps.arrow"


def test_pyarrow_and_pandas(file: Path) -> None:
    frame = pa.ipc.open_stream(file).read_pandas()
    assert frame["step"].tolist() == list(range(1, 31))
    assert frame["loss"].sum() == pytest.approx(sum(1 / number for number in range(1, 31)))
    assert frame["skipped"].dtype == bool


def test_polars(file: Path) -> None:
    frame = polars.read_ipc_stream(file)
    assert frame["step"].to_list() == list(range(1, 31))
    assert frame.filter(polars.col("loss") < 0.05)["step"].to_list() == list(range(21, 31))


def test_duckdb(file: Path) -> None:
    steps = pa.ipc.open_stream(file).read_all()
    assert duckdb.sql("select count(*), max(step), sum(tokens) from steps").fetchall() == [(30, 30, 8 * 30)]
    assert steps.num_rows == 30


@pytest.mark.parametrize("cut", [9, 100, 300])  # into the mark of the end, a body, its metadata
def test_pyarrow_reads_a_cut_file_up_to_the_last_whole_batch(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:-cut])
    batches = []
    with pa.ipc.open_stream(file) as reader, pytest.raises((pa.ArrowInvalid, OSError)):
        for batch in reader:
            batches.append(batch)
    assert [batch.num_rows for batch in batches] == [10, 10]

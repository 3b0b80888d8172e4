"""CSV and Parquet read back by pandas, polars and DuckDB."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.rich_run import HOSTILE, PHASES, SAMPLE, STEPS
from workbench.cli import main as cli
from workbench.core.records import TABLES, columns_of
from workbench.errors import ConfigError, RunDirectoryError
from workbench.export import export
from workbench.history.logs import read_table
from workbench.run.api import Run


def test_csv_is_read_by_pandas(run: Path, tmp_path: Path) -> None:
    out = export(run, "csv", tmp_path)
    frames = {path.stem: pd.read_csv(path, keep_default_na=False, na_values=["nan"]) for path in out.glob("*.csv")}
    assert set(frames) == {*TABLES, "metrics"}
    for table in TABLES:
        assert list(frames[table]) == list(columns_of(table)) and len(frames[table]) == read_table(run, table).num_rows
    expected = Run(run).metrics()
    pd.testing.assert_frame_equal(frames["metrics"][list(expected)], expected, check_dtype=False)
    assert set(frames["gradients"]["layer"]) == {"split", HOSTILE}
    assert json.loads(frames["histograms"]["counts"][0]) == [1, 3, 5]
    sample = frames["events"].query("kind == 'sample'")["value"].item()
    assert json.loads(sample) == SAMPLE
    assert np.isnan(frames["steps"].query("step == 3")["loss"]).all()


def test_parquet_is_read_by_duckdb_polars_and_pandas(run: Path, tmp_path: Path) -> None:
    out = export(run, "parquet", tmp_path)
    rows = duckdb.sql(f"select layer, sum(list_sum(counts)) from '{out}/histograms.parquet' group by layer").fetchall()
    assert dict(rows) == {"split": 2 * STEPS * 9, HOSTILE: 2 * STEPS * 9}
    joined = duckdb.sql(
        f"select count(*) from '{out}/steps.parquet' s join '{out}/phases.parquet' p using (step, rank)"
    ).fetchall()
    assert joined == [(2 * STEPS * len(PHASES),)]
    metrics = pl.read_parquet(out / "metrics.parquet")
    assert metrics["tokens"].to_list() == [400.0 * n for n in range(1, STEPS + 1)]
    expected = Run(run).metrics()
    pd.testing.assert_frame_equal(pd.read_parquet(out / "metrics.parquet")[list(expected)], expected)
    assert pd.read_parquet(out / "steps.parquet")["skipped"].dtype == bool


def test_steps_can_be_chosen(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--to", "csv", "-o", str(tmp_path), "--steps", "2-3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)
    assert set(pd.read_csv(tmp_path / "phases.csv")["step"]) == {2, 3}
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [2, 3]


def test_the_default_folder_is_in_the_run_directory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(run.parent))
    assert export("rich", "parquet") == run / "exports" / "parquet"
    assert Run("rich").export("parquet") == run / "exports" / "parquet"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--to", "exel"], 2, "unknown format 'exel'"),
        (["--to", "csv", "--steps", "9-2"], 2, "a range such as 100-120"),
        (["--to", "csv", "--steps", "x"], 2, "a range"),
        (["--to", "csv", "-o", "/dev/null/x"], 1, "pass another folder with -o DIR"),
    ],
)
def test_invalid_arguments_are_reported(
    run: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(run), *words]) == code
    assert said in capsys.readouterr().err


def test_damaged_runs_raise(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run"):
        export(tmp_path, "csv")
    (tmp_path / "control.jsonl").touch()
    (tmp_path / "spec.toml").write_text("[")
    with pytest.raises(ConfigError, match="not valid TOML"):
        export(tmp_path, "csv", tmp_path / "out")
    (tmp_path / "spec.toml").write_text("")
    (tmp_path / "rank-00000").mkdir()
    (tmp_path / "rank-00000" / "steps.arrow").write_bytes(b"junk")
    with pytest.raises(RunDirectoryError, match="is not an Arrow stream"):
        export(tmp_path, "csv", tmp_path / "out")


def test_an_empty_run_gives_empty_tables(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text("")
    (tmp_path / "control.jsonl").touch()
    for to in ("csv", "parquet", "tensorboard", "trace"):
        assert export(tmp_path, to, tmp_path / to).exists()
    assert pd.read_parquet(tmp_path / "parquet" / "metrics.parquet").empty

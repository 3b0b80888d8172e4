"""The index of runs: what a row says, that the directories are the truth, and what a broken one is told to lack."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import workbench
from tests.fake_run import make_fake_run
from workbench.history import index, labels
from workbench.history.index import INDEX_FILE, RunIndex
from workbench.history.row import RunRow
from workbench.run.api import Run
from workbench.rundir.owner import Owner


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "runs"
    monkeypatch.setenv("WORKBENCH_HOME", str(home))
    make_fake_run(home / "2026-05-01-120000-fake", steps=100)
    make_fake_run(home / "2026-05-02-120000-second", steps=20, state="failed", ranks=4, plugin="hybrid", tp=2)
    return home


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the directories that are read from now on."""
    seen: list[str] = []
    original = index.read_row

    def counted(path: Path) -> RunRow:
        seen.append(path.name)
        return original(path)

    monkeypatch.setattr(index, "read_row", counted)
    return seen


def test_a_row_says_what_the_run_itself_says(home: Path) -> None:
    first, second = RunIndex().rows()
    run = Run(home / first.directory)
    metrics = run.metrics()
    assert (first.recipe, first.ranks, first.steps, first.steps_planned) == ("stdlib-llama", 2, 100, 100)
    assert first.best_loss == metrics["loss"].min() and first.tps == np.median(metrics["tps"][1:])
    validation = run.events().query("kind == 'validation' and name == 'loss'")["value"]
    assert first.best_validation == validation.min()
    assert first.state == run.status == "finished" and first.plan == run.plan.describe()
    assert first.when == run.events()["time"].min() and first.problem == ""
    assert first.disk_bytes == sum(p.lstat().st_blocks * 512 for p in (home / first.directory).rglob("*"))
    assert second.state == "failed" and second.ranks == 4


def test_only_what_changed_is_read_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = RunIndex()
    before = kept.rows()
    seen = reads(monkeypatch)
    assert kept.rows() == RunIndex().rows() == before and seen == []
    labels.tag(home / before[0].directory, ["good"])
    assert kept.rows()[0].tags == ("good",) and seen == [before[0].directory]
    events = home / before[1].directory / "rank-00000" / "events.arrow"
    os.utime(events, (1, 1))
    assert RunIndex().rows() and seen == [row.directory for row in before]


@pytest.mark.parametrize("damage", ["", "no json\n", '{"v": 99, "mark": "", "row": {}}\n', '{"v": 1}\n[]\n1\n', "\x00"])
def test_a_lost_or_broken_index_is_made_anew(home: Path, damage: str) -> None:
    before = RunIndex().rows()
    (home / INDEX_FILE).write_text(damage)
    assert RunIndex().rows() == before
    assert len((home / INDEX_FILE).read_text().splitlines()) == len(before)
    (home / INDEX_FILE).write_bytes(b"\xff\xfe")
    assert RunIndex().rows() == before


def test_one_broken_line_costs_one_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = RunIndex().rows()
    lines = (home / INDEX_FILE).read_text().splitlines()
    (home / INDEX_FILE).write_text("\n".join([lines[0][:40], lines[1]]))
    seen = reads(monkeypatch)
    assert RunIndex().rows() == before and seen == [before[0].directory]


def test_runs_that_are_gone_leave_the_index(home: Path) -> None:
    import shutil

    kept = RunIndex()
    first, _ = kept.rows()
    shutil.rmtree(home / first.directory)
    assert len(kept.rows()) == 1 and first.directory not in (home / INDEX_FILE).read_text()


def test_a_home_that_cannot_be_written_is_listed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index.os, "open", refuse)
    assert len(RunIndex().rows()) == 2 and not (home / INDEX_FILE).exists()
    assert RunIndex(home / "nowhere").rows() == []


def test_a_run_that_trains_is_lost_with_its_owner(home: Path) -> None:
    path = make_fake_run(home / "2026-05-03-120000-live", steps=10, state="running")
    Owner.this_process().write(path)
    kept = RunIndex()
    assert kept.rows()[2].state == "running"
    replace(Owner.this_process(), created=1.0).write(path)
    assert kept.rows()[2].state == "lost"  # its logs did not change


def break_spec(path: Path) -> None:
    (path / "spec.toml").write_text("steps = [")


def drop_spec(path: Path) -> None:
    (path / "spec.toml").unlink()


def newer_spec(path: Path) -> None:
    (path / "spec.toml").write_text("spec_version = 99\n")


def drop_rank(path: Path) -> None:
    import shutil

    shutil.rmtree(path / "rank-00001")


def scramble(path: Path) -> None:
    (path / "rank-00001" / "steps.arrow").write_bytes(b"<html>not a log</html>")


def truncate(path: Path) -> None:
    log = path / "rank-00001" / "steps.arrow"
    log.write_bytes(log.read_bytes()[:-1000])


def garble(path: Path) -> None:
    log = path / "rank-00001" / "events.arrow"
    log.write_bytes(log.read_bytes().replace(b"running", b"runn\xffng"))


def newer_log(path: Path) -> None:
    for log in path.glob("rank-*/steps.arrow"):
        with pa.ipc.open_stream(log.read_bytes()) as stream:
            rows = stream.read_all()
        with pa.ipc.new_stream(str(log), rows.schema.with_metadata({"schema_version": "9"})) as stream:
            stream.write_table(rows.replace_schema_metadata({"schema_version": "9"}))


@pytest.mark.parametrize(
    ("damage", "said", "state"),
    [
        (break_spec, "is not valid TOML", "broken"),
        (drop_spec, "no spec.toml", "broken"),
        (newer_spec, "spec_version 99", "broken"),
        (drop_rank, "no log of rank 1 of 2", "lost"),
        (scramble, "rank-00001/steps.arrow is not an Arrow stream", "broken"),
        (truncate, "cut off: rank-00001/steps.arrow", "finished"),
        (garble, "rank-00001/events.arrow is damaged", "broken"),
        (newer_log, "has schema version 9", "broken"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_with_a_directory_is_said(home: Path, damage: object, said: str, state: str) -> None:
    damage(home / "2026-05-01-120000-fake")  # type: ignore[operator]
    row = next(row for row in RunIndex().rows() if row.directory == "2026-05-01-120000-fake")
    assert said in row.problem and row.state == state


def test_folders_that_are_no_runs_are_left_out(home: Path) -> None:
    (home / "notes").mkdir()
    (home / "file.txt").write_text("")
    assert len(RunIndex().rows()) == 2


def test_the_python_twin_is_a_table(home: Path) -> None:
    frame = workbench.runs()
    assert list(frame["directory"]) == ["2026-05-01-120000-fake", "2026-05-02-120000-second"]
    assert str(frame["when"].dtype).startswith("datetime64") and frame["best_loss"].dtype == float
    assert workbench.runs(home / "nowhere").empty


def test_hostile_labels_come_back_as_they_are(home: Path) -> None:
    path = home / "2026-05-01-120000-fake"
    hostile = "</script><b>\"'\u2028 \N{GRINNING FACE} " + "x" * 5000
    labels.note(path, hostile)
    labels.tag(path, ["<i>tag</i>", "é"])
    row = RunIndex().rows()[0]
    assert row.notes == hostile.strip() and row.tags == ("<i>tag</i>", "é")
    (path / labels.LABELS_FILE).write_text("[1")
    assert RunIndex().rows()[0].tags == ()

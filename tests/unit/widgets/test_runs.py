"""The table of runs and the figures of a comparison in the kernel: what they display, send and do on messages."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import widgets
import workbench
from magics.runs import RunsMagics
from tests.fake_run import make_fake_run
from tests.waiting import WAIT_S, until
from widgets.overlay import StaticFigures
from widgets.runs import RunsTable, message
from workbench.errors import ConfigError
from workbench.history import curves, labels
from workbench.history.index import RunIndex

HOSTILE = "</script><b>\"'&\u2028\N{GRINNING FACE} $x$ @y"

#: of two runs with 2 and 4 ranks
FIGURES = [
    "Loss",
    "Throughput",
    "Gradient norm (global L2)",
    "Logged: entropy",
    "Logged: router load",
    "Logged: tokens seen",
    "Speed-up",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "runs"
    monkeypatch.setenv("WORKBENCH_HOME", str(home))
    make_fake_run(home / "2026-05-01-120000-first", steps=40)
    make_fake_run(home / "2026-05-02-120000-second", steps=20, ranks=4)
    return home


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, *_, **__: seen.append(data))
    return seen


@pytest.fixture
def table(home: Path, published: list[dict[str, Any]]) -> Iterator[tuple[RunsTable, list[dict[str, Any]]]]:
    shown = RunsTable(RunIndex(), interval_s=0.02)
    sent: list[dict[str, Any]] = []
    shown.widget.send = lambda content, buffers=None: sent.append(content)
    shown.show()
    yield shown, sent
    shown.close()


def names(content: dict[str, Any]) -> list[str]:
    return [row["keys"]["directory"] for row in content["rows"]]


def test_the_table_follows_the_runs(
    home: Path, table: tuple[RunsTable, list[dict[str, Any]]], published: list[dict[str, Any]]
) -> None:
    shown, sent = table
    assert names(sent[0]) == ["2026-05-01-120000-first", "2026-05-02-120000-second"]
    bundle = published[0]
    assert "2026-05-01-120000-first" in bundle["text/plain"] and "<table>" in bundle["text/html"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id
    shutil.rmtree(home / "2026-05-01-120000-first")
    until(lambda: names(sent[-1]) == ["2026-05-02-120000-second"])
    count = len(sent)
    shown._on_message(shown.widget, {"kind": "hello"}, [])
    assert len(sent) == count + 1  # a page that comes later has all rows


def test_only_one_table_asks_the_disk(table: tuple[RunsTable, list[dict[str, Any]]]) -> None:
    RunsTable(RunIndex(), interval_s=0.02).show()
    assert [t.name for t in threading.enumerate()].count("runs-table") == 1
    assert RunsTable._shown is not None
    RunsTable._shown.close()
    assert [t.name for t in threading.enumerate()].count("runs-table") == 0


def test_nobody_looks(table: tuple[RunsTable, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = table
    thread = shown._thread
    assert thread is not None
    monkeypatch.setattr("widgets.runs.UNSEEN_TIMEOUT_S", 0.0)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    monkeypatch.setattr("widgets.runs.UNSEEN_TIMEOUT_S", 60.0)
    shown._on_message(shown.widget, {"kind": "here"}, [])
    assert shown._thread is not None and shown._thread.is_alive()


def test_labels_written_in_the_table(home: Path, table: tuple[RunsTable, list[dict[str, Any]]]) -> None:
    shown, sent = table
    path = home / "2026-05-01-120000-first"

    def write(name: str, text: str, directory: str = path.name) -> None:
        shown._on_message(shown.widget, {"kind": "label", "directory": directory, "name": name, "text": text}, [])

    write("tags", "good, paper")
    write("notes", HOSTILE)
    assert labels.read(path) == labels.Labels(tags=("good", "paper"), note=HOSTILE)
    write("tags", "paper")
    assert labels.read(path).tags == ("paper",)
    write("notes", "x", directory="../outside")
    assert not (home.parent / "outside").exists()
    write("tags", "x" * 100)
    assert any(m["kind"] == "trouble" and "one word" in m["text"] for m in sent)
    assert sent[-1]["rows"][0]["labels"] == {"tags": "paper", "notes": HOSTILE}


def test_rows_are_strict_json(home: Path) -> None:
    rows = RunIndex().rows()
    text = json.dumps(message(rows), allow_nan=False)
    assert json.loads(text)["columns"][0] == {"name": "directory", "title": "run", "number": False}


@pytest.fixture
def shell() -> InteractiveShell:
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.register_magics(RunsMagics)
    return shell


def test_magics_in_a_terminal(home: Path, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_line_magic("dist_runs", "--where ranks>2")
    out = capsys.readouterr().out
    assert "second" in out and "first" not in out
    found = shell.run_line_magic("dist_compare", "")
    assert [s.label for s in found.compared] == ["first", "second"]
    assert shell.run_line_magic("dist_compare", "'first' second --x tokens").x == "tokens"
    shell.run_line_magic("dist_runs", "--name nothing")
    assert "no runs in" in capsys.readouterr().out


def test_magics_in_a_notebook(
    home: Path, shell: InteractiveShell, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widgets, "available", lambda: True)
    shell.run_line_magic("dist_compare", "first second")
    assert published[0]["image/png"].startswith("iVBOR") and "first" in published[0]["text/plain"]
    shell.run_line_magic("dist_runs", "--last 1")
    assert RunsTable._shown is not None
    RunsTable._shown.close()
    assert "second" in published[1]["text/plain"] and "first" not in published[1]["text/plain"]


def test_figures_come_with_bokeh_once(home: Path) -> None:
    found = workbench.compare(["first", "second"])
    shown = StaticFigures(curves.figures(found), picture=curves.picture(found), title="t")
    sent: list[tuple[dict[str, Any], Any]] = []
    shown.widget.send = lambda content, buffers=None: sent.append((content, buffers))
    shown._on_message(shown.widget, {"kind": "hello", "have": None}, [])
    assert [content["kind"] for content, _ in sent] == ["bokeh", "figures"]
    assert b"Bokeh" in gzip.decompress(sent[0][1][0])
    titles = [f["title"] for f in sent[1][0]["figures"]]
    assert titles == FIGURES
    shown._on_message(shown.widget, {"kind": "hello", "have": sent[0][0]["version"]}, [])
    assert [content["kind"] for content, _ in sent[2:]] == ["figures"]
    shown._on_message(shown.widget, "?", [])
    assert len(sent) == 3


def test_curves_hold_what_was_logged(home: Path) -> None:
    found = workbench.compare(["first", "second"], "time")
    for run, line in zip(found.compared, curves.lines(found, "loss"), strict=True):
        np.testing.assert_array_equal(line["x"], run.curve["time"])
        np.testing.assert_array_equal(line["y"], run.curve["loss"])
        assert line["smooth"][0] == line["y"][0]


def test_hostile_labels_are_no_markup_in_tooltips_and_pictures(home: Path) -> None:
    assert "<" not in curves._tip(HOSTILE) and "@" not in curves._tip(HOSTILE) and "$" not in curves._tip(HOSTILE)
    (home / "2026-05-01-120000-first").rename(home / "$a_{<b>$ _x")
    found = workbench.compare(["$a_{<b>$ _x", "second"])
    assert curves.picture(found).startswith(b"\x89PNG") and len(curves.figures(found)) == len(FIGURES)


def test_a_path_without_a_run_is_said(home: Path, shell: InteractiveShell) -> None:
    with pytest.raises(ConfigError, match="needs at least two runs"):
        workbench.compare(["first"])


def test_runs_that_cannot_be_read_are_told_until_they_can(
    table: tuple[RunsTable, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, sent = table

    def fails() -> Any:
        raise AttributeError("a column of tomorrow")

    def troubles() -> list[str]:
        return [content["text"] for content in list(sent) if content["kind"] == "trouble"]

    monkeypatch.setattr(shown.index, "rows", fails)
    until(lambda: len(troubles()) == 1)
    assert troubles() == ["The runs could not be read (AttributeError: a column of tomorrow); retrying."]
    monkeypatch.undo()
    until(lambda: len(troubles()) == 2)
    assert troubles()[1] == "", "and the message is taken away"

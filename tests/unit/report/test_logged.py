"""Logged images and texts in the report: which ones, how many bytes, and what is said of those that cannot be shown."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

from tests.fake_media import add_media, png, ring
from tests.fake_run import fake_spec, write_spec
from workbench.core.records import MediaRecord
from workbench.report import logged, render, run_data
from workbench.report.logged import read_logged
from workbench.rundir.log import RankLogWriter

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logged")
    write_spec(path, fake_spec())
    add_media(path, steps=range(10, 210, 10))
    return path


def page_of(run: Path) -> BeautifulSoup:
    return BeautifulSoup(render(run, figures=[], light=True).read_text(), "html.parser")


def test_the_newest_the_first_and_some_between_are_shown(run: Path) -> None:
    found, left_out = read_logged(run_data.read(run))
    shown = {name.name: [(item.step, item.rank) for item in name.items] for name in found}
    assert left_out == 0
    assert shown["attention map"] == [(step, 0) for step in (10, 40, 60, 90, 120, 150, 170, 200)]
    assert shown["digit"] == [(step, rank) for step in (10, 70, 140, 200) for rank in (0, 1)]
    assert [name.left_out for name in found] == [32, 32, 12]
    newest = found[1].items[-1]
    assert base64.b64decode(newest.source.partition(",")[2]) == png(ring(207))


def test_a_file_that_is_missing_or_damaged_is_said_in_its_place(run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    (run / "rank-00000/media/digit-step-000200.png").unlink()
    file = run / "rank-00001/media/digit-step-000200.png"
    file.write_bytes(file.read_bytes()[:100])
    page = page_of(run)
    notes = [note.text for note in page.select(".thumbnails .note")]
    assert ["missing" in notes[0], "damaged" in notes[1], len(notes)] == [True, True, 2]
    assert len(page.select(".thumbnails img")) == 8 + 8 - 2


def test_bytes_are_bounded_and_the_newest_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_spec(tmp_path, fake_spec())
    add_media(tmp_path, ranks=[0], steps=(1, 2, 3))
    size = len(png(ring(3)))
    monkeypatch.setattr(logged, "_MOST_BYTES_OF_NAME", 2 * size + 40)
    found, _ = read_logged(run_data.read(tmp_path))
    digit = next(name for name in found if name.name == "digit")
    assert [item.step for item in digit.items][-1] == 3 and len(digit.items) == 2 and digit.left_out == 1
    monkeypatch.setattr(logged, "_MOST_BYTES", 0)
    assert [item.source for name in read_logged(run_data.read(tmp_path))[0] for item in name.items if item.source] == []


def test_names_and_texts_are_never_markup(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec())
    (tmp_path / "rank-00000/media").mkdir(parents=True)
    (tmp_path / "rank-00000/media/a.png").write_bytes(png(np.zeros((4, 4))))
    with RankLogWriter(tmp_path, 0) as log:
        for number in range(3):
            log.append(MediaRecord(step=number, rank=0, name=HOSTILE, kind="text", text=HOSTILE * 400))
        log.append(MediaRecord(step=1, rank=0, name=HOSTILE, kind="image", file="rank-00000/media/a.png"))
    page = page_of(tmp_path)
    assert not page.find_all("script")
    assert page.select_one(".thumbnails img")["alt"].startswith(HOSTILE)
    texts = [text.text for text in page.select("#samples pre")]
    assert len(texts) == 3 and all(len(text) < 4100 for text in texts)

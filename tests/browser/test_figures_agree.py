"""Figures of one run agree wherever they are shown: panel, report, rank by rank, with and without a slow rank."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup

from tests.browser.static_page import StaticPanel
from tests.fake_records import straggler
from tests.fake_run import make_fake_run
from workbench import Run
from workbench.core.records import SESSION_RANK, Event
from workbench.report import render
from workbench.rundir.log import RankLogWriter

pytestmark = pytest.mark.browser

ROWS = """(name) => Object.fromEntries(Object.entries(document.querySelector(`.dw-figure[data-figure=${name}]`).dwPlot
  .document.get_model_by_name("rows").data).map(([column, values]) => [column, [...values]]))"""
SLOW = ".dw-rank[data-slow=true]"


def shown(bare: Any, run: Path) -> StaticPanel:
    """The panel of a run that has ended, with its verdict."""
    panel = StaticPanel(bare, run)
    panel.pump("() => Number(document.querySelector('.dw')?.dataset.points) > 0")
    panel.pump(panel.feeds[0].ended.is_set)
    panel.pump("() => document.querySelector('.dw-verdict').innerText.includes('step')")
    return panel


def open_figure(panel: StaticPanel, tab: str, name: str) -> dict[str, np.ndarray]:
    """The rows of a figure, once it is drawn."""
    panel.open(tab)
    drawn = f"document.querySelector('.dw-figure[data-figure={name}]')?.dwPlot?.document"
    panel.pump(f"() => {drawn}?.get_model_by_name('rows')?.get_length() > 0")
    return {column: np.array(values) for column, values in panel.page.evaluate(ROWS, name).items()}


def test_panel_and_report_agree_on_the_run_and_on_each_rank(bare: Any, tmp_path: Path) -> None:
    """Phases of every third step of two ranks, of which one is slow."""
    run = make_fake_run(tmp_path / "run", steps=90, detail_every=3)
    panel = shown(bare, run)
    verdict, slow = Run(run).verdict(), straggler(2)
    told = bare.locator(".dw-verdict").inner_text()
    assert told == verdict.sentence and verdict.window in told and f"ank {slow}" in told
    assert verdict.count == len(range(3, 91, 3)) - 3
    summary = BeautifulSoup(render(run).read_text(encoding="utf-8"), "html.parser").find(id="summary")
    assert summary is not None and told in " ".join(summary.get_text().split()), "the report has the panel's sentence"
    bars = open_figure(panel, "ranks", "phase_bars")
    for rank in (0, 1):
        own = bars["rank"] == rank
        lengths = (bars["right"] - bars["left"])[own]
        assert lengths.sum() == pytest.approx(sum(verdict.per_rank[rank].values()), rel=0.02)
    panel.pump(lambda: bare.locator(SLOW).count() == 1)
    assert bare.locator(f"{SLOW} .dw-rank-name").inner_text() == f"rank {slow}"
    timeline = open_figure(panel, "timeline", "timeline")
    assert {0, 1} <= set(timeline["rank"].tolist())
    assert panel.errors == []
    panel.close()


def test_noise_names_no_rank(bare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fake_records.straggler", lambda ranks: None)
    panel = shown(bare, make_fake_run(tmp_path / "run", steps=80))
    assert "No rank stands out" in bare.locator(".dw-verdict").inner_text()
    open_figure(panel, "ranks", "phase_bars")
    panel.pump("() => document.querySelectorAll('.dw-rank').length === 2")
    assert bare.locator(SLOW).count() == 0
    assert not bare.get_by_text("▶ straggler").is_visible()
    panel.close()


def test_a_pause_is_no_time_of_training(bare: Any, tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=100, state="running")
    began = Run(run).events().query("name == 'running'")["time"].min()
    with RankLogWriter(run, SESSION_RANK) as log:
        for at, name in ((2.0, "paused"), (7.0, "running")):
            log.append(Event(time=began + at, step=16, rank=0, kind="state", name=name))
    opened = time.time()
    panel = StaticPanel(bare, run, status=lambda: "running")
    panel.pump("() => document.querySelector('.dw-clock')?.innerText.includes('elapsed')")
    minutes, seconds = bare.locator(".dw-clock").inner_text().split()[0].split(":")
    assert opened - 1 <= began + 5 + 60 * int(minutes) + int(seconds) <= time.time() + 1
    panel.close()

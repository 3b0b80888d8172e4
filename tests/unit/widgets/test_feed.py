"""What the kernel sends to a panel: pure functions, then the feed on a run that goes on."""

from __future__ import annotations

import gzip
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bokeh.models import ColumnDataSource

from tests.fake_records import FakeRank
from tests.fake_run import LiveFakeRun, fake_spec, make_fake_run, write_spec
from tests.waiting import WAIT_S, until
from widgets import available
from widgets.page import wire
from widgets.panel.feed import Feed
from widgets.panel.stream import Stream
from widgets.panel.summary import Facts
from workbench.core.columns import Columns
from workbench.core.records import SESSION_RANK, Event
from workbench.events.outcome import failure
from workbench.plots import plots, throughput
from workbench.plots.base import TABS
from workbench.rundir.log import RankLogWriter
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store


def opened(path: Path) -> Store:
    store = Store(path)
    store.refresh()
    return store


def facts_of(path: Path, **options: Any) -> dict[str, Any]:
    facts = Facts(opened(path))
    facts.update()
    defaults: dict[str, Any] = {"status": facts.logged_state, "can_control": True, "clock": time.time()}
    return facts.now(**{**defaults, **options})


def unpack(described: dict[str, Any], buffers: list[bytes]) -> dict[str, Columns]:
    """What the script in the browser does."""
    out: dict[str, Columns] = {}
    for figure, columns in described.items():
        out[figure] = {}
        for name, kind, place, *texts in columns:
            values = np.frombuffer(buffers[place], dtype="<u2" if kind == "code" else f"<{kind}")
            out[figure][name] = np.array([texts[0][code] for code in values], dtype=object) if texts else values
    return out


def test_a_stream_gives_each_row_once_and_only_of_the_tab_that_is_looked_at(tmp_path: Path) -> None:
    stream = Stream(opened(make_fake_run(tmp_path / "run")))
    news = stream.take({"overview"}, 0.0)
    assert {item["tab"] for item in news.figures} == {"overview"}
    assert wire.rows_of(news.columns["loss"]) == 200
    assert not stream.take({"overview"}, 10.0)
    assert set(stream.take(set(TABS), 20.0).columns) == {plot.NAME for plot in plots() if plot.TAB != "overview"}


def test_packed_columns_come_back(tmp_path: Path) -> None:
    store = opened(make_fake_run(tmp_path / "run"))
    news = {plot.NAME: plot.columns(store, None)[0] for plot in plots()}
    described, buffers = wire.pack(news)
    again = unpack(json.loads(json.dumps(described)), buffers)
    for figure, columns in news.items():
        for name, values in columns.items():
            if values.dtype == object:
                assert list(again[figure][name]) == list(values)
            else:
                np.testing.assert_allclose(again[figure][name], values, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 255], "u1"), ([0, 256], "u2"), ([-1, 70000], "i4"), ([0.5], "f4"), ([1, math.nan], "f4"), ([1e10], "f4")],
)
def test_numbers_travel_as_small_as_they_are(values: list[float], kind: str) -> None:
    assert wire.kind_of(np.array(values, dtype=float)) == kind


def test_too_many_rows_are_thinned_for_page_and_kernel_alike(tmp_path: Path) -> None:
    """What a page has after any number of updates is what it would get after a reload, and stays bounded."""
    make_fake_run(tmp_path / "run", steps=20, state="running", grad_every=0)
    store, page = Store(tmp_path / "run"), Page()
    stream = Stream(store, [Steps(3 * rows.BUDGET)])  # type: ignore[list-item]
    for tick in range(60):
        news = stream.take({"overview"}, float(tick))
        page.take_columns(news.columns, news.replace)
    assert wire.rows_of(page.rows["steps"]) <= 1.6 * rows.BUDGET
    stream.forget()
    np.testing.assert_array_equal(stream.take({"overview"}, 99.0).columns["steps"]["step"], page.rows["steps"]["step"])
    assert page.rows["steps"]["step"][-1] == 3 * rows.BUDGET


class Steps:
    """A figure that grows by 200 rows at every look."""

    NAME, TITLE, TAB, AXIS = "steps", "Steps", "overview", "step"

    def __init__(self, end: int) -> None:
        self.end = end

    def columns(self, _store: Store, cursor: int | None) -> tuple[Columns, int]:
        first = cursor or 0
        after = min(self.end, first + 200)
        return {"step": np.arange(first + 1, after + 1, dtype=float)}, after

    def figure(self, source: Any) -> Any:
        return throughput.figure(ColumnDataSource({"step": [], "tokens": [], "smooth": []}))


def test_bokeh_js_is_the_installed_one_and_small() -> None:
    assert b"Bokeh" in gzip.decompress(wire.bokeh_js())
    assert len(wire.bokeh_js()) < 500_000


def test_facts_of_a_finished_run(tmp_path: Path) -> None:
    facts = facts_of(make_fake_run(tmp_path / "run"))
    json.dumps(facts, allow_nan=False)
    assert (facts["status"], facts["step"], facts["steps"], facts["controls"]) == ("finished", 200, 200, "ended")
    assert facts["validation"]["step"] == 200
    assert facts["eta"] is None
    assert facts["states"] == {"finished": 2}
    assert facts["verdict"].startswith("Compute-bound: 7")
    assert facts["straggler"] == 1


def test_facts_of_a_running_run(tmp_path: Path) -> None:
    facts = facts_of(make_fake_run(tmp_path / "run", state="running"))
    assert facts["controls"] == "ready"
    assert facts["eta"] == pytest.approx(80 * 0.12, abs=0.6)
    assert facts_of(tmp_path / "run", can_control=False)["controls"] == "none"


def test_facts_name_what_went_wrong(tmp_path: Path) -> None:
    facts = facts_of(make_fake_run(tmp_path / "run", state="failed"))
    assert facts["notice"]["level"] == "error"
    assert facts["notice"]["text"] == "rank 1: ended by signal 9 (killed)"
    assert facts["states"] == {"failed": 1, "died": 1}
    assert facts["failure"] == {"who": "rank 1", "error": "ended by signal 9 (killed)", "traceback": ""}
    assert facts_of(make_fake_run(tmp_path / "good"))["failure"] is None


def test_facts_show_a_failure_once_with_all_ranks_that_had_it(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", state="running")
    value = failure("ValueError", "bad", "  File cell.py, line 3\nValueError: bad\n")
    with RankLogWriter(run, SESSION_RANK) as log:
        for rank in (1, 0):
            log.append(Event(time=9e9, step=4, rank=rank, kind="state", name="failed", value=json.dumps(value)))
    found = facts_of(run)["failure"]
    assert found["who"] == "ranks 0-1" and found["error"] == "ValueError: bad"
    assert found["traceback"].count("line 3") == 1


def test_available_is_false_without_a_kernel() -> None:
    assert available() is False


class Page:
    """Takes messages as a page does: rows of the last full message and the deltas of its epoch; acknowledges them."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.bytes: list[int] = []
        self.epoch = 0
        self.rows: dict[str, Columns] = {}
        self.facts: dict[str, Any] = {}
        self.feed: Feed | None = None
        self.tab = "overview"

    @property
    def losses(self) -> list[float]:
        return self.rows.get("loss", {}).get("step", np.empty(0)).tolist()

    def __call__(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        self.kinds.append(content["kind"])
        self.bytes.append(len(json.dumps(content, allow_nan=False)) + sum(map(len, buffers)))
        if content["kind"] == "full":
            self.epoch, self.rows, self.facts = content["epoch"], {}, {}
        if content["kind"] in ("full", "delta") and content["epoch"] == self.epoch:
            self.facts |= content["facts"]
            self.take_columns(unpack(content["columns"], buffers), content.get("replace", []))
            if self.feed is not None:
                threading.Thread(target=self.feed.look, args=(self.views(), content["seq"])).start()

    def take_columns(self, news: dict[str, Columns], replace: list[str]) -> None:
        for figure, columns in news.items():
            old = {} if figure in replace else self.rows.get(figure, {})
            joined = {name: np.concatenate([old.get(name, values[:0]), values]) for name, values in columns.items()}
            self.rows[figure] = joined

    def views(self) -> list[dict[str, Any]]:
        return [{"run": 0, "tab": self.tab, "visible": True}]


@pytest.fixture(autouse=True)
def pages_say_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late: a busy machine takes long."""
    monkeypatch.setattr("widgets.panel.feed.UNASKED_AFTER_S", (3600.0,))


def test_after_a_rollback_a_page_has_what_a_new_reader_has(tmp_path: Path) -> None:
    """The curves of the steps that were taken back go, and those trained again come, while the panel is open."""
    spec = fake_spec(steps=100, grad_every=2)
    write_spec(tmp_path, spec)
    logs = [RankLogWriter(tmp_path, rank, flush_s=0.05) for rank in range(2)]
    ranks = [FakeRank(log.rank, spec, ["a", "b"], log, 1) for log in logs]

    def train(first: int, last: int) -> None:
        for step in range(first, last + 1):
            for rank in ranks:
                rank.step(step, time.time())

    page = Page()
    feed = page.feed = Feed(Store(tmp_path), page, status=lambda: "running")
    feed.start()
    try:
        feed.hello(None)
        train(1, 12)
        until(lambda: page.losses == list(range(1, 13)))
        for log in logs:
            log.event("checkpoint", "restored", {"path": "step-000004", "rows": log.taken()}, step=4)
        train(5, 7)
        until(lambda: page.losses == list(range(1, 8)) and page.facts["step"] == 7)
        late = opened(tmp_path)
        for plot in plots():
            if plot.TAB == "overview" and "step" in page.rows[plot.NAME]:
                np.testing.assert_allclose(page.rows[plot.NAME]["step"], plot.columns(late, None)[0]["step"])
        table = pd.DataFrame(late.table("phases"))
        assert not table.duplicated(["step", "rank", "phase", "micro_batch", "start_ms"]).any()
        assert table["step"].max() == 7
    finally:
        feed.close()
        for log in logs:
            log.close()


def test_feed_sends_all_rows_once_and_ends_with_the_run(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=120, step_s=0.02)
    page, ends = Page(), []
    feed = Feed(
        Store(run.path), page, status=lambda: run.status, can_control=True, on_end=lambda _s, facts: ends.append(facts)
    )
    page.feed = feed
    feed.start()
    feed.hello(None)
    until(lambda: page.losses)
    feed.hello(wire.bokeh_version())  # the page was loaded again
    assert feed.ended.wait(WAIT_S)
    assert page.kinds[:2] == ["bokeh", "full"]
    assert page.kinds.count("bokeh") == 1
    assert sorted(set(page.losses)) == list(range(1, 121))
    assert page.losses == sorted(page.losses)
    assert page.rows["spine"]["step"].tolist() == list(range(1, 121))
    assert page.facts["status"] == "finished"
    assert [facts["step"] for facts in ends] == [120]
    feed.hello(wire.bokeh_version())  # after the end a page still gets everything
    assert page.kinds[-2:] == ["full", "delta"]
    assert set(page.losses) == set(range(1, 121))
    assert "cosine" not in page.rows
    page.tab = "gradients"
    feed.look(page.views())  # and a tab that was not looked at before
    assert page.rows["gradients"]["step"].size and "cosine" in page.rows


@pytest.mark.parametrize(("unasked_after_s", "speaks"), [(3600.0, False), (0.2, True)])
def test_feed_is_silent_until_a_page_says_hello_or_is_overdue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unasked_after_s: float, speaks: bool
) -> None:
    """The hello may wait behind a running cell."""
    monkeypatch.setattr("widgets.panel.feed.UNASKED_AFTER_S", (unasked_after_s,))
    run = LiveFakeRun(tmp_path / "run", steps=1000, step_s=0.02)
    page = Page()
    feed = Feed(Store(run.path), page, status=lambda: run.status)
    feed.start()
    if speaks:
        until(lambda: "full" in page.kinds)
    else:
        time.sleep(0.8)
        assert page.kinds == []
    feed.close()
    run.stop()
    run.wait(WAIT_S)


def test_closed_feed_ends_without_a_picture(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=1000, step_s=0.02)
    ends: list[Any] = []
    feed = Feed(Store(run.path), Page(), status=lambda: run.status, on_end=lambda *_: ends.append(1))
    feed.start()
    feed.close()
    feed._thread.join(WAIT_S)
    run.stop()
    run.wait(WAIT_S)
    assert not feed._thread.is_alive()
    assert ends == []


def test_a_run_that_ended_for_a_branch_names_it(tmp_path: Path) -> None:
    """Its panel looks on until the new run is there; that one names where it comes from."""
    trunk = make_fake_run(tmp_path / "2026-01-01-120000-trunk", steps=5, state="stopped")
    with RankLogWriter(trunk, SESSION_RANK) as log:
        log.event("control", "branch", {"lr": 1e-4}, step=3)
    page = Page()
    feed = page.feed = Feed(Store(trunk), page)
    feed.start()
    feed.hello(None)
    assert feed.ended.wait(WAIT_S)
    assert feed._thread.is_alive(), "it waits for the branch"
    twig = tmp_path / "2026-01-01-120009-twig"
    twig.mkdir()
    write_spec(twig, fake_spec().replace(resume=f"{trunk}@3"))
    feed._thread.join(WAIT_S)
    assert page.facts["lineage"] == "continues in twig from step 3"
    assert facts_of(twig)["lineage"] == "continues trunk from step 3"

"""What the kernel sends to a panel: pure functions, then the feed on a run that goes on."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_run import LiveFakeRun, make_fake_run
from widgets import available, wire
from widgets.facts import Facts
from widgets.feed import Feed
from workbench.outcome import failure
from workbench.plots import plots
from workbench.rank_log import RankLogWriter
from workbench.records import SESSION_RANK, Event
from workbench.telemetry.store import Columns, Store


def opened(path: Path) -> Store:
    store = Store(path)
    store.refresh()
    return store


def facts_of(path: Path, **options: Any) -> dict[str, Any]:
    facts = Facts(opened(path))
    facts.update()
    defaults: dict[str, Any] = {"status": facts.logged_state, "can_stop": True, "asked": False, "clock": time.time()}
    return facts.now(**{**defaults, **options})


def unpack(described: dict[str, Any], buffers: list[bytes]) -> dict[str, Columns]:
    """What the script in the browser does."""
    return {
        figure: {
            name: np.array(place, dtype=object) if kind == "text" else np.frombuffer(buffers[place], dtype=f"<{kind}")
            for name, kind, place in columns
        }
        for figure, columns in described.items()
    }


def test_delta_gives_each_row_once(tmp_path: Path) -> None:
    store = opened(make_fake_run(tmp_path / "run"))
    news, cursors = wire.delta(plots(), store, {})
    assert set(news) == {plot.NAME for plot in plots()}
    assert wire.rows_of(news["loss"]) == 200
    assert wire.delta(plots(), store, cursors)[0] == {}


def test_packed_columns_come_back(tmp_path: Path) -> None:
    news, _ = wire.delta(plots(), opened(make_fake_run(tmp_path / "run")), {})
    described, buffers = wire.pack(news)
    again = unpack(json.loads(json.dumps(described)), buffers)
    for figure, columns in news.items():
        for name, values in columns.items():
            if values.dtype == object:
                assert list(again[figure][name]) == list(values)
            else:
                np.testing.assert_allclose(again[figure][name], values, rtol=1e-6)


def test_bokeh_js_is_the_installed_one_and_small() -> None:
    assert b"Bokeh" in gzip.decompress(wire.bokeh_js())
    assert len(wire.bokeh_js()) < 500_000


def test_facts_of_a_finished_run(tmp_path: Path) -> None:
    facts = facts_of(make_fake_run(tmp_path / "run"))
    json.dumps(facts, allow_nan=False)
    assert (facts["status"], facts["step"], facts["steps"], facts["stop"]) == ("finished", 200, 200, "ended")
    assert facts["validation"]["step"] == 200
    assert facts["eta"] is None
    assert facts["sample"]["text"].startswith("class Reader")
    assert [tile["state"] for tile in facts["ranks"]] == ["finished", "finished"]


def test_facts_of_a_running_run(tmp_path: Path) -> None:
    facts = facts_of(make_fake_run(tmp_path / "run", state="running"))
    assert facts["stop"] == "ready"
    assert facts["eta"] == pytest.approx(80 * 0.12, rel=0.01)
    assert facts_of(tmp_path / "run", asked=True)["stop"] == "asked"
    assert facts_of(tmp_path / "run", can_stop=False)["stop"] == "none"


def test_facts_name_what_went_wrong(tmp_path: Path) -> None:
    facts = facts_of(make_fake_run(tmp_path / "run", state="failed"))
    assert facts["notice"]["level"] == "error"
    assert "rank 1 died: ended by signal 9" in facts["notice"]["text"]
    assert facts["ranks"][1]["state"] == "died"
    assert facts["failure"] == "rank 1: ended by signal 9 (killed)"
    assert facts_of(make_fake_run(tmp_path / "good"))["failure"] is None


def test_facts_show_a_failure_once_with_all_ranks_that_had_it(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", state="running")
    value = failure("ValueError", "bad", "  File cell.py, line 3\nValueError: bad\n")
    with RankLogWriter(run, SESSION_RANK) as log:
        for rank in (1, 0):
            log.append(Event(time=9e9, step=4, rank=rank, kind="state", name="failed", value=json.dumps(value)))
    facts = facts_of(run)
    assert facts["failure"] == "ranks 0-1: ValueError: bad\n  File cell.py, line 3\nValueError: bad"


def test_available_is_false_without_a_kernel() -> None:
    assert available() is False


class Page:
    """Takes messages as a page does: rows of the last full message and the deltas of its epoch."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.bytes: list[int] = []
        self.epoch = 0
        self.losses: list[float] = []
        self.facts: dict[str, Any] = {}

    def __call__(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        self.kinds.append(content["kind"])
        self.bytes.append(len(json.dumps(content, allow_nan=False)) + sum(map(len, buffers)))
        if content["kind"] == "full":
            self.epoch, self.losses = content["epoch"], []
        if content["kind"] in ("full", "delta") and content["epoch"] == self.epoch:
            self.facts = content["facts"]
            self.losses += unpack(content["columns"], buffers).get("loss", {}).get("step", np.empty(0)).tolist()


def wait_until(condition: Any, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_feed_sends_all_rows_once_and_ends_with_the_run(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=120, step_s=0.02)
    page, ends = Page(), []
    feed = Feed(
        Store(run.path), page, status=lambda: run.status, can_stop=True, on_end=lambda _s, facts: ends.append(facts)
    )
    feed.start()
    feed.hello(None)
    wait_until(lambda: page.losses)
    feed.hello(wire.bokeh_version())  # the page was loaded again
    assert feed.ended.wait(20)
    assert page.kinds[:2] == ["bokeh", "full"]
    assert page.kinds.count("bokeh") == 1
    assert sorted(set(page.losses)) == list(range(1, 121))
    assert page.losses == sorted(page.losses)
    assert page.facts["status"] == "finished"
    assert [facts["step"] for facts in ends] == [120]
    feed.hello(wire.bokeh_version())  # after the end a page still gets everything
    assert page.kinds[-1] == "full"
    assert set(page.losses) == set(range(1, 121))


def test_feed_is_silent_until_a_page_says_hello_and_then_speaks_up(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=1000, step_s=0.02)
    page = Page()
    feed = Feed(Store(run.path), page, status=lambda: run.status)
    feed.start()
    time.sleep(0.8)
    assert page.kinds == []
    wait_until(lambda: "full" in page.kinds, 5)  # its hello may wait behind a running cell
    feed.close()
    run.stop()
    run.wait(10)


def test_closed_feed_ends_without_a_picture(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=1000, step_s=0.02)
    ends: list[Any] = []
    feed = Feed(Store(run.path), Page(), status=lambda: run.status, on_end=lambda *_: ends.append(1))
    feed.start()
    feed.close()
    feed._thread.join(5)
    run.stop()
    run.wait(10)
    assert not feed._thread.is_alive()
    assert ends == []

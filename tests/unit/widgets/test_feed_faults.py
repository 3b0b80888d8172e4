"""What goes wrong in a plot module, in an event, or in the feed itself is told in its place; all else goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_run import LiveFakeRun, fake_spec, make_fake_run, write_spec
from tests.waiting import WAIT_S, until
from widgets.page import wire
from widgets.panel import feed as feeds
from widgets.panel.feed import Feed
from widgets.panel.stream import RETRY_S, Stream
from workbench.core.columns import Columns
from workbench.core.records import Event
from workbench.errors import RunDirectoryError
from workbench.plots import loss, plots
from workbench.plots.base import TABS
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store


class Brittle:
    """A plot that counts its calls, and raises, or gives something odd, at those that ``wrong`` names."""

    NAME, TITLE, TAB, AXIS, EMPTY = "brittle", "A brittle figure", "overview", "step", "nothing"

    def __init__(self, **wrong: dict[int, Any]) -> None:
        self.wrong = wrong
        self.calls = {"columns": 0, "figure": 0}

    def columns(self, store: Store, cursor: int | None) -> tuple[Columns, int]:
        first = cursor or 0
        return self._called("columns", {"step": np.array([first + 1.0])}), first + 1

    def figure(self, source: Any) -> Any:
        return self._called("figure", loss.figure(source))

    def _called(self, what: str, good: Any) -> Any:
        number, self.calls[what] = self.calls[what], self.calls[what] + 1
        bad = self.wrong.get(what, {}).get(number, good)
        if isinstance(bad, Exception):
            raise bad
        return bad


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(make_fake_run(tmp_path_factory.mktemp("runs") / "run", steps=12))
    store.refresh()
    return store


def stream_of(store: Store, brittle: Brittle) -> Stream:
    return Stream(store, [plots()[0], brittle, plots()[1]])  # type: ignore[list-item]


def figures_of(news: Any) -> dict[str, str]:
    """Name of each figure that is to be drawn -> why it cannot be, or ""."""
    return {figure["name"]: figure.get("failed", "") for figure in news.figures}


@pytest.mark.parametrize("what", ["columns", "figure"])
def test_a_plot_that_raises_at_first_says_so_in_its_place(store: Store, what: str) -> None:
    stream = stream_of(store, Brittle(**{what: {0: KeyError("loss of tomorrow")}}))
    news = stream.take({"overview"}, 0.0)
    assert figures_of(news) == {"loss": "", "brittle": "KeyError: 'loss of tomorrow'", "throughput": ""}
    assert set(news.columns) == {"loss", "throughput"} == set(news.replace)
    failed = news.figures[1]
    assert (failed["title"], failed["tab"], failed["height"]) == ("A brittle figure", "overview", wire.FAILED_HEIGHT)
    json.dumps(failed)


def test_a_plot_that_raises_later_gives_its_place_to_a_message_and_comes_back(store: Store) -> None:
    brittle = Brittle(columns={2: ValueError("a step of -1")})
    stream = stream_of(store, brittle)
    assert figures_of(stream.take({"overview"}, 0.0)) == {"loss": "", "brittle": "", "throughput": ""}
    assert stream.take({"overview"}, 1.0).columns["brittle"]["step"].tolist() == [2.0]
    assert figures_of(stream.take({"overview"}, 2.0)) == {"brittle": "ValueError: a step of -1"}
    assert not stream.take({"overview"}, 2.0 + RETRY_S / 2) and brittle.calls["columns"] == 3, "it is left alone"
    again = stream.take({"overview"}, 2.0 + RETRY_S)
    assert figures_of(again) == {"brittle": ""} and again.columns["brittle"]["step"].tolist() == [1.0], "from its begin"
    assert again.replace == ["brittle"]


def test_a_plot_that_keeps_failing_is_told_once_and_to_every_new_page(store: Store) -> None:
    stream = stream_of(store, Brittle(columns=dict.fromkeys(range(9), ValueError("no"))))
    assert figures_of(stream.take({"overview"}, 0.0))["brittle"] == "ValueError: no"
    assert not stream.take({"overview"}, RETRY_S) and not stream.take({"overview"}, 2 * RETRY_S)
    stream.forget()
    assert figures_of(stream.take({"overview"}, 2 * RETRY_S + 1))["brittle"] == "ValueError: no"


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"step": [1.0, 2.0]}, "TypeError: column 'step' holds list, not numbers or text"),
        ({"step": np.array(["2026-01-01"], dtype="M8[s]")}, "TypeError: column 'step' holds datetime64[s], not"),
        ({"step": np.arange(2.0), "loss": np.arange(3.0)}, "ValueError: columns differ in length: step 2, loss 3"),
    ],
)
def test_columns_that_cannot_travel_are_the_plots_own_fault(store: Store, columns: Any, why: str) -> None:
    news = stream_of(store, Brittle(columns={0: columns})).take({"overview"}, 0.0)
    assert figures_of(news)["brittle"].startswith(why)
    wire.pack(news.columns)


def test_rows_without_a_figure_have_no_place_for_a_message(store: Store) -> None:
    with pytest.raises(ValueError, match="no"):
        Stream(store, [Brittle(columns={0: ValueError("no")})], drawn=False).take({"overview"}, 0.0)  # type: ignore[list-item]


class Told:
    """Takes what a feed sends, and looks at every tab."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.feed: Feed | None = None
        self.looks: list[threading.Thread] = []

    def __call__(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        self.messages.append(content)
        if self.feed is not None and "seq" in content:
            views = [{"run": 0, "tab": tab, "visible": True} for tab in TABS]
            self.looks.append(threading.Thread(target=self.feed.look, args=(views, content["seq"])))
            self.looks[-1].start()

    @property
    def troubles(self) -> list[str]:
        return [message["text"] for message in self.messages if message["kind"] == "trouble"]

    def kinds(self, kind: str) -> int:
        return sum(message["kind"] == kind for message in self.messages)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Feed, Told]]]:
    """``opened(store, ...)``: a feed that runs, and what it sends."""
    monkeypatch.setattr(feeds, "RETRY_S", 0.05)
    monkeypatch.setattr(feeds, "UNASKED_AFTER_S", ())  # the page says hello, however late
    made: list[Feed] = []

    def open_feed(store: Store, **options: Any) -> tuple[Feed, Told]:
        told = Told()
        feed = told.feed = Feed(store, told, **options)
        made.append(feed)
        feed.start()
        feed.hello(wire.bokeh_version())
        return feed, told

    yield open_feed
    for feed in made:
        feed.close()
        feed._thread.join(300)


def test_a_round_that_fails_is_told_and_the_next_sends_everything_anew(
    tmp_path: Path, few_figures: None, opened: Callable[..., tuple[Feed, Told]], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, told = opened(Store(make_fake_run(tmp_path / "run", steps=5, state="running")), status=lambda: "running")
    until(lambda: told.kinds("full") == 1)
    broken = threading.Event()
    update = feed._facts.update

    def fails(clock: float | None = None) -> Columns:
        if broken.is_set():
            raise AttributeError("nobody thought of this")
        return update(clock)

    monkeypatch.setattr(feed._facts, "update", fails)
    broken.set()
    feed.update_soon()
    until(lambda: bool(told.troubles))
    feed.update_soon()
    assert told.troubles == [
        "The panel could not be updated (AttributeError: nobody thought of this). "
        "Retrying; the training is not affected."
    ]
    assert "in fails" in next(m for m in told.messages if m["kind"] == "trouble")["detail"]
    broken.clear()
    until(lambda: told.kinds("full") == 2)
    assert feed._thread.is_alive() and len(told.troubles) == 1, "told once, however often it was tried"


def test_a_page_that_asks_after_the_end_is_told_of_a_failure_too(
    tmp_path: Path, few_figures: None, opened: Callable[..., tuple[Feed, Told]], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, told = opened(Store(make_fake_run(tmp_path / "run", steps=5)))
    assert feed.ended.wait(300)
    feed._thread.join(WAIT_S)
    for look in told.looks:  # one that comes later would meet the failure before the page asks
        look.join(WAIT_S)

    def fails(*_: Any) -> Columns:
        raise AttributeError("nobody thought of this")

    monkeypatch.setattr(feed._facts, "update", fails)
    feed.hello(wire.bokeh_version())
    assert len(told.troubles) == 1 and "nobody thought of this" in told.troubles[0]


@pytest.mark.parametrize("error", [ZeroDivisionError("no width"), RunDirectoryError("the disk is full")])
def test_a_picture_that_cannot_be_made_is_told_and_keeps_nobody_waiting(
    tmp_path: Path, few_figures: None, opened: Callable[..., tuple[Feed, Told]], error: Exception
) -> None:
    def no_picture(*_: Any) -> None:
        raise error

    feed, told = opened(Store(make_fake_run(tmp_path / "run", steps=5)), on_end=no_picture)
    assert feed.ended.wait(300)
    until(lambda: bool(told.troubles))
    assert str(error) in told.troubles[0]


def test_a_thread_that_cannot_go_on_says_so_and_keeps_nobody_waiting(
    tmp_path: Path, opened: Callable[..., tuple[Feed, Told]]
) -> None:
    def busy() -> bool:
        raise OSError("the kernel's own state is gone")

    feed, told = opened(Store(make_fake_run(tmp_path / "run", steps=5, state="running")), busy=busy)
    assert feed.ended.wait(300)
    said = "no longer updated (OSError: the kernel's own state is gone)"
    until(lambda: any(said in text for text in told.troubles))


def test_a_run_that_ends_while_rounds_fail_is_waited_for_no_longer(
    tmp_path: Path, opened: Callable[..., tuple[Feed, Told]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LAST_ROWS_S", 0.2)
    run = LiveFakeRun(tmp_path / "run", steps=10_000, step_s=0.05)
    feed, told = opened(Store(run.path), status=lambda: run.status)

    def fails() -> int:
        raise MemoryError("no room for rows")

    monkeypatch.setattr(feed._store, "refresh", fails)
    until(lambda: bool(told.troubles))
    run.stop()
    run.wait(300)
    assert feed.ended.wait(300)


#: values that no event of ours has: of another program, or of a version to come
FOREIGN = ["not json", "[]", "null", '{"v": 2}', "3", '"text"', '{"name": [1], "kind": {}, "rows": 7, "rank": "x"}']


def test_events_of_another_version_stop_nothing(tmp_path: Path, opened: Callable[..., tuple[Feed, Told]]) -> None:
    write_spec(tmp_path, fake_spec(steps=50))
    make_fake_run(tmp_path, steps=20, state="running")
    kinds = {"control": ["declared", "lr", "branch", "rollback", "warp"], "state": ["failed", "dreaming", "running"],
             "settings": ["in_force"], "validation": ["loss", "accuracy", "confusion"], "sample": ["text"],
             "refused": ["lr"], "warning": ["bad_command"], "rank": ["died"], "checkpoint": ["restored", "failed"],
             "monitor": ["interval", "cost"], "peak": ["flops", "model"], "data": ["batch"], "nonfinite": ["loss"],
             "spike": ["loss"], "of tomorrow": ["x"]}  # fmt: skip
    with RankLogWriter(tmp_path, 0) as log, RankLogWriter(tmp_path, -1) as session:
        for kind, names in kinds.items():
            for name in names:
                for value in FOREIGN:
                    foreign = {"time": time.time(), "step": 3, "kind": kind, "name": name, "value": value}
                    log.append(Event(rank=0, old_value=value, **foreign))
                    session.append(Event(rank=-1, old_value="null", **foreign))
    _, told = opened(Store(tmp_path), status=lambda: "running")
    drawn = {plot.NAME for plot in plots()}
    until(lambda: bool(told.troubles) or {f["name"] for m in told.messages for f in m.get("figures", [])} >= drawn)
    assert told.troubles == []
    failed = {f["name"]: f["failed"] for m in told.messages for f in m.get("figures", []) if "failed" in f}
    assert not failed

"""What the page gets of logged images and texts: what it looks at, the newest unless it chose, at a bounded rate."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_media import add_media, png, ring
from tests.fake_run import fake_spec, write_spec
from tests.waiting import WAIT_S
from widgets.panel.feed import Feed
from widgets.panel.logged_media import BYTES_PER_S, LoggedMedia
from workbench.core.records import MediaRecord
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_spec(tmp_path, fake_spec())
    add_media(tmp_path, steps=(10, 20, 30))
    return tmp_path


def opened(run: Path) -> tuple[Store, LoggedMedia]:
    store = Store(run)
    store.refresh()
    return store, LoggedMedia(store)


def test_the_newest_of_the_first_name_is_shown_until_another_is_chosen(run: Path) -> None:
    _, shown = opened(run)
    news = shown.news(0.0)
    assert [(n["kind"], n["name"]) for n in news["logged"]["names"]] == [
        ("text", "answer"), ("image", "digit"), ("image", "attention map"),
    ]  # fmt: skip
    assert news["logged"]["names"][1]["groups"] == [{"ranks": [0, 1], "steps": [10, 20, 30]}]
    item = news["logged_item"]
    assert (item["name"], item["rank"], item["step"], item["newest"]) == ("answer", 0, 30, True)
    assert shown.news(99.0) == {}
    shown.choose({"kind": "image", "name": "digit", "rank": 1, "step": 20, "turn": 4})
    news = shown.news(99.0)
    assert list(news) == ["logged_item"], "the list is as it was"
    item = news["logged_item"]
    assert base64.b64decode(item["png"]) == png(ring(27))
    assert (item["step"], item["newest"], item["turn"], item["problem"]) == (20, False, 4, "")


@pytest.mark.parametrize(
    "choice", [None, 7, {}, {"kind": "image", "name": "gone", "rank": 9, "step": 1}, {"rank": "a"}]
)
def test_what_is_not_there_is_answered_with_what_is(run: Path, choice: Any) -> None:
    _, shown = opened(run)
    shown.choose(choice)
    assert shown.news(0.0)["logged_item"]["step"] == 30


def test_new_images_follow_at_a_rate_that_their_size_sets(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec())
    noise = np.random.default_rng(1).integers(0, 256, (700, 700))
    folder = tmp_path / "rank-00000/media"
    with RankLogWriter(tmp_path, 0) as log:
        folder.mkdir()

        def add(step: int) -> None:
            (folder / f"{step}.png").write_bytes(png(noise))
            log.append(MediaRecord(step=step, rank=0, name="noise", kind="image", file=f"rank-00000/media/{step}.png"))
            log.flush()

        add(1)
        store, shown = opened(tmp_path)
        assert shown.news(0.0)["logged_item"]["step"] == 1
        add(2)
        store.refresh()
        seconds = len(png(noise)) / BYTES_PER_S
        assert shown.news(seconds) == {}, "the line is not filled with them"
        assert shown.news(seconds + 1.1)["logged_item"]["step"] == 2
        add(3)
        store.refresh()
        assert shown.news(None)["logged_item"]["step"] == 3, "the last state of a run is shown"


def test_a_rollback_takes_them_back(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec())
    with RankLogWriter(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.append(MediaRecord(step=step, rank=0, name="said", kind="text", text=str(step)))
        log.flush()
        store, shown = opened(tmp_path)
        assert shown.news(0.0)["logged_item"]["text"] == "3"
        log.event("checkpoint", "restored", {"rows": log.taken()}, step=1)
        log.append(MediaRecord(step=2, rank=0, name="said", kind="text", text="again"))
        log.flush()
        store.refresh()
        news = shown.news(9.0)
        assert news["logged"]["names"][0]["groups"] == [{"ranks": [0], "steps": [1, 2]}]
        assert news["logged_item"]["text"] == "again"


def test_only_a_page_that_looks_gets_them(run: Path) -> None:
    sent: list[dict[str, Any]] = []
    feed = Feed(Store(run), lambda content, _buffers: sent.append(content), status=lambda: "finished")
    view = {"run": 0, "visible": True}
    feed.look([{**view, "tab": "overview"}])
    feed.start()
    feed.hello("3")
    assert feed.ended.wait(WAIT_S)
    assert not [message for message in sent if "logged_item" in message.get("extra", {})]
    feed.look([{**view, "tab": "samples"}])
    (message,) = [message for message in sent if "logged_item" in message.get("extra", {})]
    assert message["extra"]["logged_item"]["name"] == "answer"
    feed.choose("logged", {"kind": "image", "name": "digit", "rank": 0, "step": None})
    assert sent[-1]["extra"]["logged_item"]["name"] == "digit"
    feed.hello("3")
    assert "logged" in sent[-1]["extra"], "a page that was reloaded has nothing"

"""The panel in the kernel: what it displays, stores and does on messages."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fake_run import LiveFakeRun, make_fake_run
from tests.waiting import WAIT_S, until
from widgets.panel.panel import Panel, summarise
from workbench.errors import ConfigError, RunDirectoryError
from workbench.telemetry.store import Store


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], bool]]:
    seen: list[tuple[dict[str, Any], bool]] = []

    def publish(data: dict[str, Any], metadata: Any, *, transient: Any, update: bool) -> None:
        seen.append((data, update))

    monkeypatch.setattr("IPython.display.publish_display_data", publish)
    return seen


def test_output_becomes_a_picture_at_the_end(tmp_path: Path, published: list[tuple[dict[str, Any], bool]]) -> None:
    panel = Panel(make_fake_run(tmp_path / "run"))
    panel.show()
    panel.show()
    assert panel.finish(WAIT_S)
    (first, is_update), (last, is_update_too) = published
    assert (is_update, is_update_too) == (False, True)
    assert first["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.widget.model_id
    assert set(last) == {"image/png", "text/plain"}
    assert base64.b64decode(last["image/png"]).startswith(b"\x89PNG")
    assert last["text/plain"].startswith("run: finished at step 200 of 200, loss ")


def test_two_runs_become_one_picture_when_both_ended(
    tmp_path: Path, published: list[tuple[dict[str, Any], bool]]
) -> None:
    from PIL import Image

    panel = Panel(make_fake_run(tmp_path / "a", steps=20), make_fake_run(tmp_path / "b", steps=10))
    panel.show()
    assert panel.finish(WAIT_S)
    panel.close()
    (first, _), (last, is_update) = published
    assert first["text/plain"] == "Live panel of a and b" and is_update
    assert [text.split(":")[0] for text in last["text/plain"].split("\n\n")] == ["a", "b"]
    whole = Image.open(io.BytesIO(base64.b64decode(last["image/png"])))
    assert whole.height > whole.width * 0.8 and len(last["image/png"]) < 200_000


def test_widget_keeps_no_data(tmp_path: Path) -> None:
    panel = Panel(make_fake_run(tmp_path / "run"))
    own = {name for name in panel.widget.keys if not name.startswith("_")} - {"layout", "tabbable", "tooltip"}
    assert own == {"panel_id"}


def test_stop_message_stops_the_run(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=100_000, step_s=0.01)
    panel = Panel(run)
    panel._on_message(panel.widget, {"kind": "control", "name": "stop", "value": None}, [])
    run.wait(WAIT_S)
    assert (run.stop_calls, run.status) == (1, "stopped")


def test_controls_reach_the_run_and_refusals_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=100_000, step_s=0.01)
    panel = Panel(run)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(panel.widget, "send", lambda content, buffers=None: told.append(content))
    for name, value in (("lr", 0.5), ("lr", -1), ("clip", 1.0)):
        panel._on_message(panel.widget, {"kind": "control", "run": 0, "name": name, "value": value}, [])
    until(lambda: not run.waiting())
    run.stop()
    run.wait(WAIT_S)
    panel._on_message(panel.widget, {"kind": "control", "run": 0, "name": "pause", "value": None}, [])
    assert run.controls == [("lr", 0.5), ("clip", 1.0)]
    assert [answer["error"] is None for answer in told] == [True, False, True, False]
    assert "takes a number above 0" in told[1]["error"] and "takes no command" in told[3]["error"]
    seen = Store(run.path)
    seen.refresh()
    events = seen.table("events")
    assert set(events["rank"][events["kind"] == "control"]) == {0, 1}


def test_a_directory_is_shown_but_not_steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = Panel(make_fake_run(tmp_path / "run"))
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(panel.widget, "send", lambda content, buffers=None: told.append(content))
    panel._on_message(panel.widget, {"kind": "control", "run": 0, "name": "stop", "value": None}, [])
    assert "open it with %dist_watch" in told[0]["error"]


def test_closing_leaves_no_thread(tmp_path: Path, published: list[tuple[dict[str, Any], bool]]) -> None:
    make_fake_run(tmp_path / "one", state="running", steps=20)
    make_fake_run(tmp_path / "two", state="running", steps=20)
    before = set(threading.enumerate())
    panel = Panel(tmp_path / "one", tmp_path / "two")
    panel.show()
    assert len(set(threading.enumerate()) - before) == 2
    panel.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_S)
    assert not set(threading.enumerate()) - before


def test_more_runs_than_a_panel_has_room_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 2 runs, not 3"):
        Panel(tmp_path, tmp_path, tmp_path)


def test_path_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        Panel(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot read the spec"):
        Panel(tmp_path)


def test_summary_without_numbers() -> None:
    facts = {"name": "a", "status": "failed", "step": 0, "steps": 9, "loss": None, "validation": None, "plan": "one"}
    assert summarise(facts) == "a: failed at step 0 of 9 (one)"

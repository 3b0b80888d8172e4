"""The panel in the kernel: what it displays, stores and does on messages."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.fake_run import LiveFakeRun, make_fake_run
from widgets.panel import Panel, summarise
from workbench.errors import ConfigError, RunDirectoryError


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
    assert panel.finish(20)
    (first, is_update), (last, is_update_too) = published
    assert (is_update, is_update_too) == (False, True)
    assert first["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.widget.model_id
    assert set(last) == {"image/png", "text/plain"}
    assert base64.b64decode(last["image/png"]).startswith(b"\x89PNG")
    assert last["text/plain"].startswith("run: finished at step 200 of 200, loss ")


def test_widget_keeps_no_data(tmp_path: Path) -> None:
    panel = Panel(make_fake_run(tmp_path / "run"))
    own = {name for name in panel.widget.keys if not name.startswith("_")} - {"layout", "tabbable", "tooltip"}
    assert own == {"panel_id"}


def test_stop_message_stops_the_run(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", step_s=0.01)
    panel = Panel(run)
    panel._on_message(panel.widget, {"kind": "stop"}, [])
    run.wait(5)
    assert (run.stop_calls, run.status) == (1, "stopped")


def test_path_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory"):
        Panel(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot read the spec"):
        Panel(tmp_path)


def test_summary_without_numbers() -> None:
    facts = {"name": "a", "status": "failed", "step": 0, "steps": 9, "loss": None, "validation": None, "plan": "one"}
    assert summarise(facts) == "a: failed at step 0 of 9 (one)"

"""``widgets.watch`` and its magic: a run, two runs, the machine."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from traitlets.config import Config

import widgets
from magics.watch import WatchMagics
from tests.fake_run import make_fake_run
from tests.waiting import WAIT_S
from widgets import machine
from widgets.machine import MachinePanel
from widgets.panel.panel import Panel
from workbench.errors import RunDirectoryError
from workbench.plots import theme


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setattr("IPython.display.publish_display_data", lambda *_, **__: None)
    make_fake_run(tmp_path / "2026-01-01-120000-one", steps=10)
    make_fake_run(tmp_path / "2026-01-01-120001-two", steps=10, ranks=3)
    return tmp_path


def test_runs_are_found_by_name(home: Path) -> None:
    panel = widgets.watch("one", home / "2026-01-01-120001-two")
    assert isinstance(panel, Panel)
    assert [feed._names for feed in panel.feeds] == [["2026-01-01-120000-one", "2026-01-01-120001-two"]] * 2
    panel.close()
    with pytest.raises(RunDirectoryError, match="no run 'three'"):
        widgets.watch("three")


def test_the_machine_is_looked_at_once_a_second_until_it_is_closed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    published: list[tuple[dict[str, Any], bool]] = []
    monkeypatch.setattr(
        "IPython.display.publish_display_data", lambda data, *_, update, **__: published.append((data, update))
    )
    panel = widgets.watch()
    assert isinstance(panel, MachinePanel)
    told: list[dict[str, Any]] = []
    came = threading.Event()

    def send(content: dict[str, Any], buffers: Any = None) -> None:
        told.append(content)
        came.set()

    monkeypatch.setattr(panel.widget, "send", send)
    panel._on_message(panel.widget, {"kind": "hello"}, [])
    assert came.wait(WAIT_S)
    panel.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_S)
    assert not set(threading.enumerate()) - before
    assert told[0]["kind"] == "machine"
    (first, _), (last, is_update) = published  # what a viewer without widgets shows: as it began, then as it ended
    assert "application/vnd.jupyter.widget-view+json" in first and is_update
    assert set(last) == {"image/png", "text/plain"}
    assert all(base64.b64decode(data["image/png"]).startswith(b"\x89PNG") for data in (first, last))


def test_what_is_seen_of_the_machine() -> None:
    seen = machine.look()
    json.dumps(seen, allow_nan=False)
    assert len(seen["cores"]) == psutil.cpu_count()
    assert seen["memory"]["total"] == psutil.virtual_memory().total
    assert 0 < seen["memory"]["used"] < seen["memory"]["total"]


def test_the_picture_of_the_machine_has_bars_as_long_as_what_is_used() -> None:
    gpu = {"name": "a GPU", "busy": None, "used": 3 * 2**30, "total": 12 * 2**30}
    seen = machine.look() | {"cores": [100.0, 50.0], "memory": {"used": 2**30, "total": 2**32}, "gpus": [gpu]}
    picture = Image.open(io.BytesIO(base64.b64decode(machine.still(seen)["image/png"]))).convert("RGB")
    wanted = np.array([int(theme.RANK_COLOURS[0][at : at + 2], 16) for at in (1, 3, 5)])
    blue = (np.abs(np.asarray(picture).astype(int) - wanted).sum(axis=2) < 30).sum(axis=1)
    rows = [group for group in np.split(blue, np.flatnonzero(np.diff(blue > 0)) + 1) if group[0]]
    lengths = [int(np.median(group)) for group in rows]
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 0.5, 0.25, 0.25], abs=0.02)
    many = machine.still(seen | {"cores": [50.0] * 200})["image/png"]
    assert Image.open(io.BytesIO(base64.b64decode(many))).height < picture.height


def test_without_a_notebook_the_magic_prints(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.register_magics(WatchMagics)
    shell.run_line_magic("dist_watch", "one two")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" at ")[0] for line in lines] == ["<Run 'fake' finished", "<Run 'fake' finished"]
    shell.run_line_magic("dist_watch", "")
    assert f"{psutil.cpu_count()} cores" in capsys.readouterr().out


def test_a_look_that_fails_is_told_in_the_panel_and_the_next_one_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PERIOD_S", 0.01)
    panel = MachinePanel()
    told: list[dict[str, Any]] = []
    shown = threading.Event()
    faults = [AttributeError("a counter of tomorrow")] * 2
    look = machine.look

    def fails_twice() -> dict[str, Any]:
        if faults:
            raise faults.pop()
        return look()

    def send(content: dict[str, Any], buffers: Any = None) -> None:
        told.append(content)
        if content["kind"] == "machine":
            shown.set()

    monkeypatch.setattr(panel.widget, "send", send)
    monkeypatch.setattr(machine, "look", fails_twice)
    panel._thread.start()
    assert shown.wait(WAIT_S)
    panel._closing.set()
    panel._wake.set()
    panel._thread.join(WAIT_S)
    panel.close()
    text = "The state of the machine could not be read (AttributeError: a counter of tomorrow); retrying."
    assert [content.get("text") for content in told[:2]] == [text, None], "told once, and then it is looked at"

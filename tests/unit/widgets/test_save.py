"""Saving the open notebook from its kernel: it is saved when the file is whole, not when its writing begins."""

import json
import threading
import time
from pathlib import Path

import pytest

from widgets.page import save


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    path = tmp_path / "open.ipynb"
    path.write_text("{}")
    return path


class Page:
    """Stands for the widget: its page empties the file, and writes it a little later, if at all."""

    def __init__(self, path: Path, text: str, pause_s: float) -> None:
        self._writer = threading.Thread(target=self._write, args=(path, text, pause_s))
        self._writer.start()

    def _write(self, path: Path, text: str, pause_s: float) -> None:
        time.sleep(0.05)
        path.write_text("")
        time.sleep(pause_s)
        path.write_text(text[: len(text) // 2])
        time.sleep(pause_s)
        path.write_text(text)

    def close(self) -> None:
        self._writer.join()


def test_it_is_saved_when_the_file_is_whole(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"cells": ["é"] * 10})
    monkeypatch.setattr(save, "SaveWidget", lambda name: Page(notebook, text, 0.2))
    monkeypatch.setattr(save, "WAIT_S", 60)
    seen: list[str] = []
    was_written = save._was_written

    def look(path: Path, before: int) -> bool:
        is_whole = was_written(path, before)
        if is_whole:
            seen.append(path.read_text())
        return is_whole

    monkeypatch.setattr(save, "_was_written", look)
    assert save.save_notebook(notebook)
    assert seen == [text]


def test_a_page_that_never_writes_it_whole_is_not_waited_for_for_ever(
    notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save, "SaveWidget", lambda name: Page(notebook, "[" * 10, 0.05))
    monkeypatch.setattr(save, "WAIT_S", 0.5)
    assert not save.save_notebook(notebook)

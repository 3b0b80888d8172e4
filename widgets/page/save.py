"""Saving the notebook that is open in the page, from its kernel: outputs reach the file only when the page saves it."""

from __future__ import annotations

import time
from pathlib import Path

import anywidget
import traitlets

from widgets.page import bundle

#: a page that saves does so within this time; where none is there, so long is waited for nothing
WAIT_S = 4.0
_LOOK_S = 0.05


class SaveWidget(anywidget.AnyWidget):
    """Never displayed: its script runs when the page hears of it, and saves the notebook called ``name``."""

    name = traitlets.Unicode().tag(sync=True)

    _esm = bundle.script("save", before=())


def save_notebook(notebook: Path) -> bool:
    """Ask the page that shows ``notebook`` to save it; whether its file was written within ``WAIT_S``."""
    before = notebook.stat().st_mtime_ns
    widget = SaveWidget(name=notebook.stem)
    try:
        deadline = time.monotonic() + WAIT_S
        while notebook.stat().st_mtime_ns == before:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        return True
    finally:
        widget.close()

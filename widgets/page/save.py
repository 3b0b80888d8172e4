"""Saves the open notebook from its kernel. Only the page can do it: outputs reach the file when the page saves it."""

from __future__ import annotations

import time
from pathlib import Path

import anywidget
import traitlets

from widgets.page import bundle

#: seconds to wait until the page has saved the notebook
WAIT_S = 4.0
_LOOK_S = 0.05


class SaveWidget(anywidget.AnyWidget):
    """A widget that is never displayed: the page runs its script, which saves the notebook called ``name``."""

    name = traitlets.Unicode().tag(sync=True)

    _esm = bundle.script("save", before=())


def save_notebook(notebook: Path) -> bool:
    """Ask the page that shows ``notebook`` to save it. Returns whether the file was written within ``WAIT_S``."""
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

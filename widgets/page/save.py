"""Saves the open notebook from its kernel. Only the page can do it: outputs reach the file when the page saves it."""

from __future__ import annotations

import json
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
        while not _was_written(notebook, before):
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        return True
    finally:
        widget.close()


def _was_written(notebook: Path, before: int) -> bool:
    """Whether the file has been written since its modification time ``before`` (ns), to its end.

    The Jupyter server empties the file first and then writes it.
    """
    if notebook.stat().st_mtime_ns == before:
        return False
    try:
        json.loads(notebook.read_text(encoding="utf-8"))
    except ValueError:  # empty, or written in part
        return False
    return True

"""The live table of runs: rows come from the index of runs; the page sorts and filters them.

Kernel to browser (custom messages): ``rows`` (``columns``: name, title, number; ``rows``: cells as text, sort keys,
and the editable texts of labels) and ``trouble`` (``text``). Browser to kernel: ``hello`` and ``here`` (the page is
visible), ``label`` (``directory``, ``name``: tags or notes, ``text``). The notebook stores only the rows of the plain
table in the same output.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import anywidget

from widgets.page import bundle
from workbench.core import background
from workbench.errors import WorkbenchError
from workbench.history import labels, listing
from workbench.history.index import RunIndex
from workbench.history.row import RunRow
from workbench.rundir.directory import run_name

#: seconds without a message from a page after which the table stops reading the disk
UNSEEN_TIMEOUT_S = 600.0
_SHOWN_PLAIN = 50


class RunsWidget(anywidget.AnyWidget):
    """The browser side: a script and a style sheet, no state."""

    _esm = bundle.script("runs", ("link", "reload"))
    _css = bundle.STATIC / "runs.css"


class RunsTable:
    """A live table of the runs in ``index``. ``choose``: a function that selects and sorts the rows to show.

    Only one table is live: showing another one stops the updates of the previous table, which keeps its last rows.
    """

    _shown: ClassVar[RunsTable | None] = None

    def __init__(
        self, index: RunIndex, choose: Callable[[list[RunRow]], list[RunRow]] = list, *, interval_s: float = 2.0
    ) -> None:
        self.index = index
        self._choose = choose
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._rows: list[RunRow] = []
        self._ended = threading.Event()
        self._looked = time.monotonic()
        self._thread: threading.Thread | None = None
        self._rounds = background.Rounds(self._tell_failure)
        self.widget = RunsWidget()
        self.widget.on_msg(self._on_message)

    def show(self) -> None:
        """Display the table and keep it up to date."""
        from IPython.display import publish_display_data

        if RunsTable._shown is not None:
            RunsTable._shown.close()
        RunsTable._shown = self
        rows = self.refresh()
        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        publish_display_data(
            {
                "text/plain": listing.text_table(rows[-_SHOWN_PLAIN:]),
                "text/html": listing.html_table(rows[-_SHOWN_PLAIN:]),
                "application/vnd.jupyter.widget-view+json": view,
            }
        )
        self._follow()

    def close(self) -> None:
        """Stop the updates; the page keeps its rows."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def refresh(self) -> list[RunRow]:
        """Read the runs, send the rows to the page when they have changed, and return them."""
        with self._lock:
            rows = self._choose(self.index.rows())
            if rows != self._rows:
                self._rows = rows
                self._send()
            return rows

    def _send(self) -> None:
        self.widget.send(message(self._rows))

    def _follow(self) -> None:
        if self._ended.is_set() or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = background.thread(self._loop, name="runs-table", failed=self._tell_failure)
        self._thread.start()

    def _loop(self) -> None:
        while not self._ended.wait(self._interval_s) and time.monotonic() - self._looked < UNSEEN_TIMEOUT_S:
            failed_before = self._rounds.failing
            with self._rounds:
                self.refresh()
            if failed_before and not self._rounds.failing:
                self._tell("")

    def _tell_failure(self, error: BaseException) -> None:
        self._tell(f"The runs could not be read ({background.described(error)}); retrying.")

    def _tell(self, trouble: str) -> None:
        self.widget.send({"kind": "trouble", "text": trouble})

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        self._looked = time.monotonic()
        if kind == "hello":
            with self._lock:
                self._send()
        elif kind == "label":
            self._label(content)
        self._follow()

    def _label(self, content: dict[str, Any]) -> None:
        row = next((row for row in self._rows if row.directory == content.get("directory")), None)
        if row is None:
            return  # the run was removed: the next rows lack it
        path, text = self.index.home / row.directory, str(content.get("text", ""))
        try:
            if content.get("name") == "tags":
                wanted = set(text.replace(",", " ").split())
                labels.tag(path, wanted, set(row.tags) - wanted)
            else:
                labels.note(path, text)
        except WorkbenchError as error:
            self._tell(f"{row.directory}: {error}")
        self.refresh()
        with self._lock:
            self._send()  # even after an error, so that the page shows the stored labels


def message(rows: Sequence[RunRow]) -> dict[str, Any]:
    """Make the message ``rows``. A run is called by its name; its key is its directory, which has the date as well."""
    columns = [
        {"name": name, "title": title, "number": name in listing.NUMBERS} for name, title in listing.COLUMNS.items()
    ]
    return {
        "kind": "rows",
        "columns": columns,
        "rows": [
            {
                "cells": [run_name(Path(row.directory)), *listing.cells(row)[1:]],
                "keys": {name: _key(getattr(row, name)) for name in listing.COLUMNS},
                "labels": {"tags": ", ".join(row.tags), "notes": row.notes},
            }
            for row in rows
        ],
    }


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        return ", ".join(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value

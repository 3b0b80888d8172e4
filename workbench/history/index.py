"""The index of runs: a row per run directory of the runs' home, kept in one file beside them.

The directories are the truth. ``.index.jsonl`` only saves reading them again: each line has a row and a fingerprint
(names, sizes and times of the run's logs, spec and labels), and a line whose fingerprint no longer fits, or that cannot
be read, is made anew. Losing the file costs one slow listing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.config import SPEC_FILE
from workbench.history.labels import LABELS_FILE
from workbench.history.row import RunRow, present_state, read_row
from workbench.rundir import directory as run_directory

if TYPE_CHECKING:
    import pandas as pd

INDEX_FILE = ".index.jsonl"
_VERSION = 1
_LOGS = ("steps.arrow", "events.arrow")


class RunIndex:
    """The runs of one home (default: ``run_directory.home()``). ``rows()`` is what there is now."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = Path(home).expanduser().absolute() if home is not None else run_directory.home()
        self._known: dict[str, tuple[str, RunRow]] | None = None

    def rows(self) -> list[RunRow]:
        """A row per run directory, oldest first; directories that are no whole run have a ``problem``."""
        known = self._load() if self._known is None else self._known
        current: dict[str, tuple[str, RunRow]] = {}
        for path in run_directory.run_directories(self.home):
            mark = fingerprint(path)
            kept = known.get(path.name)
            current[path.name] = kept if kept is not None and kept[0] == mark else (mark, read_row(path))
        if current != known or self._known is None:
            self._save(current, known)
        self._known = current
        rows = [replace(row, state=present_state(row, self.home / row.directory)) for _, row in current.values()]
        return sorted(rows, key=lambda row: (row.when, row.directory))

    def _load(self) -> dict[str, tuple[str, RunRow]]:
        known: dict[str, tuple[str, RunRow]] = {}
        try:
            text = (self.home / INDEX_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return known  # lost, or no text: the directories tell it all again
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if entry["v"] == _VERSION:
                    row = RunRow.from_json(entry["row"])
                    known[row.directory] = (str(entry["mark"]), row)
            except (ValueError, KeyError, TypeError):
                continue  # that run is read again
        return known

    def _save(self, current: dict[str, tuple[str, RunRow]], known: dict[str, tuple[str, RunRow]]) -> None:
        if current == known or not self.home.is_dir():
            return
        lines = [json.dumps({"v": _VERSION, "mark": mark, "row": row.to_json()}) for mark, row in current.values()]
        beside = self.home / f"{INDEX_FILE}.{os.getpid()}"
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write("\n".join([*lines, ""]))
            beside.replace(self.home / INDEX_FILE)
        except OSError:
            beside.unlink(missing_ok=True)  # a home that cannot be written is listed all the same, only slower


def fingerprint(run: Path) -> str:
    """Changes when the run's steps, events, spec or labels do, or when something is added to its directory."""
    marks: list[object] = []
    try:
        with os.scandir(run) as entries:
            inner = sorted(e.name for e in entries if e.name.startswith("rank-") or e.name == "session")
    except OSError:
        inner = []
    names = [".", SPEC_FILE, LABELS_FILE, *(f"{folder}/{log}" for folder in inner for log in _LOGS)]
    for name in names:
        try:
            about = os.stat(f"{run}/{name}")
        except OSError:
            continue  # not there: that it appears is a change
        marks.append((name, about.st_mtime_ns, 0 if name == "." else about.st_size))
    return hashlib.blake2b(repr(marks).encode(), digest_size=12).hexdigest()


def runs(home: str | Path | None = None) -> pd.DataFrame:
    """The runs of ``home`` (default: ``$WORKBENCH_HOME`` or ``./runs``) as a table, oldest first.

    Columns: those of ``workbench.history.row.RunRow``; ``when`` is a local time.
    """
    import pandas as pd

    columns = list(RunRow.__dataclass_fields__)
    frame = pd.DataFrame([row.to_json() for row in RunIndex(home).rows()], columns=columns)
    frame["when"] = pd.to_datetime([datetime.fromtimestamp(t) if math.isfinite(t) else None for t in frame["when"]])
    for name in ("best_loss", "best_validation", "tps"):
        frame[name] = frame[name].astype(float)
    return frame

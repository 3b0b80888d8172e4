"""Tags and notes of a run: a small file in its directory, for people, read by every list of runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ConfigError, RunDirectoryError

LABELS_FILE = "labels.json"
_TAG = re.compile(r"[^\s,]{1,64}")
_LONGEST_NOTE = 10_000


@dataclass(frozen=True, kw_only=True)
class Labels:
    """``tags``: words without spaces, in alphabetical order. ``note``: free text."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read(run: Path) -> Labels:
    """The labels of a run directory; none where there is no file, or one that cannot be read."""
    try:
        data = json.loads((run / LABELS_FILE).read_text(encoding="utf-8"))
        tags = tuple(sorted({str(tag) for tag in data.get("tags", ())}))
        return Labels(tags=tags, note=str(data.get("note", "")))
    except (OSError, ValueError, AttributeError, TypeError):
        return Labels()


def write(run: Path, labels: Labels) -> None:
    """Replace the labels of a run in one step. ``RunDirectoryError`` when its directory cannot be written."""
    beside = run / f".{LABELS_FILE}.{os.getpid()}"
    try:
        text = json.dumps({"tags": list(labels.tags), "note": labels.note}, ensure_ascii=False)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(run / LABELS_FILE)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {run / LABELS_FILE}: {error.strerror}") from error


def tag(run: Path, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Labels:
    """Add and remove tags; returns what the run has now. ``ConfigError`` for a tag with spaces or commas."""
    add, remove = set(add), set(remove)
    for word in add:
        if not _TAG.fullmatch(word):
            raise ConfigError(f"tag {word!r}: one word of 1 to 64 characters, without spaces and commas", field="TAG")
    before = read(run)
    labels = Labels(tags=tuple(sorted((set(before.tags) | add) - remove)), note=before.note)
    write(run, labels)
    return labels


def note(run: Path, text: str) -> Labels:
    """Replace the note; an empty one removes it. ``ConfigError`` above 10,000 characters."""
    if len(text) > _LONGEST_NOTE:
        raise ConfigError(f"a note of {len(text):,} characters: {_LONGEST_NOTE:,} at most", field="TEXT")
    labels = Labels(tags=read(run).tags, note=text.strip())
    write(run, labels)
    return labels

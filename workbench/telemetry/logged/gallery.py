"""Logged images and texts as the panel and the report show them: what there is, and the content of one of them."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from workbench.core.columns import Columns
from workbench.telemetry.logged.media import MOST_KEPT, image_file

#: names that are listed, steps of a name on a rank, characters of a text: a log may be anybody's
MOST_NAMES = 100
MOST_STEPS = 1000
LONGEST_TEXT = 20_000
#: bytes and pixels a side of an image that is read
MOST_BYTES = 2**21
LONGEST_SIDE = 4096
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Name:
    """What was logged under one name: ``kind`` is "image" or "text", ``steps`` those of each rank, ascending."""

    kind: str
    name: str
    steps: dict[int, list[int]]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image (``png``; ``width``, ``height`` in pixels) or text. ``problem``: why there is none, or ""."""

    kind: str
    name: str
    rank: int
    step: int
    text: str = ""
    png: bytes = b""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(slots=True)
class _Row:
    """Of one name, rank and step: its texts, or its file."""

    texts: list[str]
    file: str
    width: int
    height: int


class Gallery:
    """The logged images and texts of a run directory. ``take`` adds rows of the table ``media``.

    ``has_rollbacks``: whether a rollback took rows back, and so files may be gone that no row tells of.
    """

    def __init__(self, run: Path, *, has_rollbacks: bool = False) -> None:
        self._run = run
        self._has_rollbacks = has_rollbacks
        self._rows: dict[tuple[str, str], dict[int, dict[int, _Row]]] = {}
        self._names: dict[tuple[str, str], Name] = {}
        #: names beyond ``MOST_NAMES``, which are not listed
        self.left_out: set[str] = set()

    def take(self, rows: Columns) -> None:
        """Add rows of the table ``media``."""
        for kind, name, rank, step, text, file, width, height in zip(
            *(rows[c].tolist() for c in _COLUMNS), strict=True
        ):
            key = (str(kind), str(name))
            if key not in self._rows and len(self._rows) >= MOST_NAMES:
                self.left_out.add(key[1])
                continue
            row = self._rows.setdefault(key, {}).setdefault(rank, {}).setdefault(step, _Row([], "", 0, 0))
            self._names.pop(key, None)
            if kind == "text":
                row.texts.append(text)
            else:
                row.file, row.width, row.height = file, width, height

    def names(self) -> list[Name]:
        """What there is to show, in the order in which names came. Of many images of a name some files were removed:
        their steps are left out, unless all are gone."""
        listings: dict[Path, frozenset[str]] = {}
        for key, ranks in self._rows.items():
            if key not in self._names:
                steps = {rank: self._steps(key[0], ranks[rank], listings)[-MOST_STEPS:] for rank in sorted(ranks)}
                self._names[key] = Name(kind=key[0], name=key[1], steps=steps)
        return [self._names[key] for key in self._rows]

    def _steps(self, kind: str, rows: dict[int, _Row], listings: dict[Path, frozenset[str]]) -> list[int]:
        steps = sorted(rows)
        if kind == "text" or (len(steps) < MOST_KEPT and not self._has_rollbacks):
            return steps
        there = [step for step in steps if self._is_there(rows[step].file, listings)]
        return there or steps

    def _is_there(self, file: str, listings: dict[Path, frozenset[str]]) -> bool:
        path = self._run / file
        if path.parent not in listings:
            try:
                listings[path.parent] = frozenset(os.listdir(path.parent))
            except (OSError, ValueError):  # gone, or no path at all
                listings[path.parent] = frozenset()
        return path.name in listings[path.parent]

    def item(self, kind: str, name: str, rank: int, step: int) -> Item:
        """The content of one of those that ``names`` lists. A file that is missing or damaged is its ``problem``."""
        row = self._rows[kind, name][rank][step]
        if kind == "text":
            text = "\n\n".join(row.texts)
            if len(text) > LONGEST_TEXT:
                text = f"{text[:LONGEST_TEXT]} ... ({len(text):,} characters)"
            return Item(kind=kind, name=name, rank=rank, step=step, text=text)
        png, problem = _read_png(self._run, row.file)
        width, height = struct.unpack(">II", png[16:24]) if png else (row.width, row.height)
        return Item(kind=kind, name=name, rank=rank, step=step, png=png, width=width, height=height, problem=problem)


_COLUMNS = ("kind", "name", "rank", "step", "text", "file", "width", "height")


def _read_png(run: Path, file: str) -> tuple[bytes, str]:
    """The bytes of a logged image, or a sentence that says why they cannot be shown."""
    try:
        path = image_file(run, file)
        if path is None:
            return b"", f"The image is missing: the run directory has no file {file}."
        if path.stat().st_size > MOST_BYTES:
            return b"", f"The image is larger than {MOST_BYTES // 2**20} MiB, so it is not shown: {file}."
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        return b"", f"The image cannot be read: {file} ({error})."
    if not is_whole_png(data):
        return b"", f"The image is damaged: {file} is not a whole PNG file."
    if max(struct.unpack(">II", data[16:24])) > LONGEST_SIDE:
        return b"", f"The image is more than {LONGEST_SIDE:,} pixels a side, so it is not shown: {file}."
    return data, ""


def is_whole_png(data: bytes) -> bool:
    """Whether all chunks are there, from the header to the end, each with its checksum (PNG specification, 5.3)."""
    at, kind, first = len(_SIGNATURE), b"", True
    if not data.startswith(_SIGNATURE):
        return False
    while kind != b"IEND":
        if at + 12 > len(data):
            return False
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body_end = at + 8 + length
        if body_end + 4 > len(data) or (first and (kind != b"IHDR" or length != 13)):
            return False
        if zlib.crc32(data[at + 4 : body_end]) != int.from_bytes(data[body_end : body_end + 4], "big"):
            return False
        at, first = body_end + 4, False
    return True

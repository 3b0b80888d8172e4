"""Reads the output files of the ranks as they grow, and folds identical lines of several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from widgets.panel.fold import Folded
from workbench.rundir.directory import OUTPUT_FILE

#: largest number of lines that are kept, and that one message has
MOST_LINES = 1500
MOST_NEW = 300
#: bytes of earlier output that the first read includes at most, per rank and in total
_BEGIN_BYTES = 64 * 1024
_ALL_BYTES = 2 * 2**20
#: bytes that one read takes from a rank's file at most
_ROUND_BYTES = 256 * 1024
#: characters of a line that are kept
_LONGEST = 2000


class Console:
    """Reads ``rank-*/output.txt`` of a run with ``ranks`` ranks. ``left_out``: number of lines that were not sent."""

    def __init__(self, run: Path, ranks: int) -> None:
        self._files = {rank: run / f"rank-{rank:05d}" / OUTPUT_FILE for rank in range(ranks)}
        self._offsets: dict[int, int] = {}
        self._tails: dict[int, bytes] = {}
        self._folded = Folded(MOST_LINES)
        self._begin = max(1024, min(_BEGIN_BYTES, _ALL_BYTES // max(1, ranks)))
        self.left_out = 0

    def read(self) -> None:
        """Read what the ranks printed since the last call."""
        lines: list[tuple[float, int, str]] = []
        for rank, file in self._files.items():
            try:
                size = file.stat().st_size
            except OSError:
                continue  # the rank has not printed anything
            own = self._lines_of(rank, file, size)
            lines += [(place / len(own), rank, text) for place, text in enumerate(own)]
        lines.sort(
            key=lambda line: line[0]
        )  # interleaves the ranks: lines have no times, so their places approximate the order
        for _, rank, text in lines:
            self._folded.add(text, rank, text=text[:_LONGEST])

    def news(self) -> list[dict[str, Any]]:
        """Return lines that are new or changed since the last call, at most the newest ``MOST_NEW``."""
        news = self._folded.news()
        self.left_out += max(0, len(news) - MOST_NEW)
        return news[-MOST_NEW:]

    def all(self) -> list[dict[str, Any]]:
        """Return the newest ``MOST_NEW`` lines, for a page that was just loaded."""
        return self._folded.all()[-MOST_NEW:]

    def _lines_of(self, rank: int, file: Path, size: int) -> list[str]:
        offset = self._offsets.get(rank, max(0, size - self._begin))
        if size < offset:  # the file was rewritten
            offset = 0
            self._tails.pop(rank, None)
        if size == offset:
            return []
        begin = max(offset, size - _ROUND_BYTES)
        with file.open("rb") as stream:
            stream.seek(begin)
            data = stream.read(size - begin)
        skips = begin > offset or (rank not in self._offsets and begin > 0)
        self._offsets[rank] = begin + len(data)
        data = (b"" if skips else self._tails.get(rank, b"")) + data
        *whole, tail = data.split(b"\n")
        self._tails[rank] = tail[-_LONGEST:]
        if skips and whole:
            whole = whole[1:]  # the read began in the middle of a line
        return [line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2] for line in whole]

"""What ranks print: their output files followed from where they were, identical lines folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from widgets.panel.fold import Folded
from workbench.rundir.directory import OUTPUT_FILE

MOST_LINES = 1500
MOST_NEW = 300
#: of what was printed before somebody looked, per rank and in all
_BEGIN_BYTES = 64 * 1024
_ALL_BYTES = 2 * 2**20
_ROUND_BYTES = 256 * 1024
_LONGEST = 2000


class Console:
    """Follows ``rank-*/output.txt`` of a run of ``ranks`` ranks; ``news()`` are lines that are new or changed."""

    def __init__(self, run: Path, ranks: int) -> None:
        self._files = {rank: run / f"rank-{rank:05d}" / OUTPUT_FILE for rank in range(ranks)}
        self._offsets: dict[int, int] = {}
        self._tails: dict[int, bytes] = {}
        self._folded = Folded(MOST_LINES)
        self._begin = max(1024, min(_BEGIN_BYTES, _ALL_BYTES // max(1, ranks)))
        self.left_out = 0

    def read(self) -> None:
        """Take in what was printed since the last call."""
        lines: list[tuple[float, int, str]] = []
        for rank, file in self._files.items():
            try:
                size = file.stat().st_size
            except OSError:
                continue  # it has printed nothing
            own = self._lines_of(rank, file, size)
            lines += [(place / len(own), rank, text) for place, text in enumerate(own)]
        lines.sort(key=lambda line: line[0])  # ranks side by side, as far as their lines tell
        for _, rank, text in lines:
            self._folded.add(text, rank, text=text[:_LONGEST])

    def news(self) -> list[dict[str, Any]]:
        """Lines that are new or changed, at most ``MOST_NEW`` of them, the newest."""
        news = self._folded.news()
        self.left_out += max(0, len(news) - MOST_NEW)
        return news[-MOST_NEW:]

    def all(self) -> list[dict[str, Any]]:
        """Everything that is kept, for a page that comes anew."""
        return self._folded.all()[-MOST_NEW:]

    def _lines_of(self, rank: int, file: Path, size: int) -> list[str]:
        offset = self._offsets.get(rank, max(0, size - self._begin))
        if size < offset:  # written anew
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
            whole = whole[1:]  # it began in the middle of a line
        return [line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2] for line in whole]

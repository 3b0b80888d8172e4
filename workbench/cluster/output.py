"""Output of ranks: collects it within bounds, groups equal output, and shortens long output in the middle."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: characters kept of one stream of one rank at each end
KEEP_CHARACTERS = 2_000_000
#: lines shown of one block, and how many of them at its end
SHOW_LINES = 400
SHOW_LAST = 150


class BoundedText:
    """Text that grows piece by piece. Keeps its first and last ``keep`` characters and counts the dropped lines."""

    def __init__(self, keep: int = KEEP_CHARACTERS) -> None:
        self._keep = keep
        self._head: list[str] = []
        self._head_size = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._lost_lines = 0

    def append(self, text: str) -> None:
        """Add a piece."""
        room = self._keep - self._head_size
        if room > 0:
            self._head.append(text[:room])
            self._head_size += min(room, len(text))
            text = text[room:]
        if not text:
            return
        self._tail.append(text)
        self._tail_size += len(text)
        while self._tail_size - len(self._tail[0]) > self._keep:
            lost = self._tail.popleft()
            self._tail_size -= len(lost)
            self._lost_lines += lost.count("\n")

    def __str__(self) -> str:
        mark = f"\n... {self._lost_lines:,} lines not kept ...\n" if self._lost_lines else ""
        return "".join(self._head) + mark + "".join(self._tail)

    def __bool__(self) -> bool:
        return self._head_size > 0


def overwrite(text: str) -> str:
    """Apply carriage returns as a terminal does, so that a progress bar is one line."""
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def elide(text: str, *, lines: int = SHOW_LINES, last: int = SHOW_LAST) -> str:
    """At most ``lines`` lines: the first ones, a count of those left out, and the ``last`` ones."""
    parts = text.splitlines(keepends=True)
    if len(parts) <= lines:
        return text
    first = lines - last
    return "".join([*parts[:first], f"... {len(parts) - lines:,} lines left out ...\n", *parts[-last:]])


@dataclass(frozen=True)
class CellFailure:
    """An error as a rank reported it; ``traceback`` is text, with colours."""

    ename: str
    evalue: str
    traceback: str


@dataclass
class Piece:
    """One output in its order: ``kind`` is ``stdout``, ``stderr`` (``text``), ``display`` or ``result`` (``data``)."""

    kind: str
    text: BoundedText = field(default_factory=BoundedText)
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def key(self) -> tuple[str, str]:
        """A key that is equal for pieces that look equal."""
        return self.kind, str(self.text) if self.kind in ("stdout", "stderr") else repr(sorted(self.data.items()))


@dataclass
class RankOutput:
    """The output of one rank for one cell."""

    rank: int
    pieces: list[Piece] = field(default_factory=list)
    error: CellFailure | None = None

    def add_text(self, kind: str, text: str) -> None:
        """Add to a stream; joined with the piece before when that is the same stream."""
        if not self.pieces or self.pieces[-1].kind != kind:
            self.pieces.append(Piece(kind))
        self.pieces[-1].text.append(text)

    def add_data(self, kind: str, data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Add a display or the result: a MIME bundle."""
        self.pieces.append(Piece(kind, data=data, metadata=metadata or {}))

    @property
    def stdout(self) -> str:
        """All of standard output."""
        return "".join(str(piece.text) for piece in self.pieces if piece.kind == "stdout")

    @property
    def stderr(self) -> str:
        """All of standard error."""
        return "".join(str(piece.text) for piece in self.pieces if piece.kind == "stderr")

    @property
    def displays(self) -> list[dict[str, Any]]:
        """MIME bundles of rich displays, in order."""
        return [piece.data for piece in self.pieces if piece.kind == "display"]

    @property
    def result(self) -> str | None:
        """``repr`` of the cell's last expression, if it had one."""
        found = [piece.data.get("text/plain") for piece in self.pieces if piece.kind == "result"]
        return found[-1] if found else None


@dataclass(frozen=True)
class Block:
    """Ranks whose output is the same, and that output."""

    ranks: tuple[int, ...]
    pieces: tuple[Piece, ...]


def fold(outputs: Mapping[int, RankOutput]) -> list[Block]:
    """Group ranks with identical output, in the order of their first rank; ranks without any are left out.

    A rank with a rich display (a figure) is a group of its own.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for rank in sorted(outputs):
        pieces = outputs[rank].pieces
        own = rank if any(piece.kind == "display" for piece in pieces) else None
        if pieces:
            groups.setdefault((own, *(piece.key() for piece in pieces)), []).append(rank)
    return [Block(tuple(ranks), tuple(outputs[ranks[0]].pieces)) for ranks in groups.values()]


def fold_errors(outputs: Mapping[int, RankOutput]) -> list[tuple[tuple[int, ...], CellFailure]]:
    """Ranks with the same error (name and message), and the error of the first of them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for rank in sorted(outputs):
        error = outputs[rank].error
        if error is not None:
            groups.setdefault((error.ename, error.evalue), []).append(rank)
    found: list[tuple[tuple[int, ...], CellFailure]] = []
    for ranks in groups.values():
        first = outputs[ranks[0]].error
        assert first is not None
        found.append((tuple(ranks), first))
    return found


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A plain text table, columns aligned to the left."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)

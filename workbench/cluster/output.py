"""Output of ranks: collects it up to a limit, groups ranks with equal output, and shortens long output."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.cluster.screen import slowest_bars, without_progress
from workbench.errors import CollectiveReleasedError

#: the error of a rank that was released from a collective, because another one failed
RELEASED = CollectiveReleasedError.__name__
#: characters kept of one stream of a rank, at the start and at the end each: a million lines are whole
KEPT_CHARACTERS = 16_000_000
#: lines shown of one output, and how many of these are its last lines
SHOWN_LINES = 400
SHOWN_LAST_LINES = 150
#: characters shown of one output, and kept of the message and of the traceback of an error
SHOWN_CHARACTERS = 200_000
MESSAGE_CHARACTERS = 10_000


class BoundedText:
    """Text that grows by appending. Keeps its first and at least its last ``limit`` characters and counts the rest: in
    lines, or in characters where no line ended."""

    def __init__(self, limit: int = KEPT_CHARACTERS) -> None:
        self._limit = limit
        self._head: list[str] = []
        self._head_size = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._lost_lines = self._lost_characters = 0

    def append(self, text: str) -> None:
        """Appends text."""
        room = self._limit - self._head_size
        if room > 0:
            self._head.append(text[:room])
            self._head_size += min(room, len(text))
            text = text[room:]
        if not text:
            return
        for start in range(0, len(text), self._limit):  # one part may be longer than all that is kept
            self._tail.append(text[start : start + self._limit])
        self._tail_size += len(text)
        while self._tail_size - len(self._tail[0]) > self._limit:
            lost = self._tail.popleft()
            self._tail_size -= len(lost)
            self._lost_lines += lost.count("\n")
            self._lost_characters += len(lost)

    def __str__(self) -> str:
        lost = f"{self._lost_lines:,} lines" if self._lost_lines else f"{self._lost_characters:,} characters"
        mark = f"\n... {lost} dropped ...\n" if self._lost_characters else ""
        return "".join(self._head) + mark + "".join(self._tail)

    def __bool__(self) -> bool:
        return self._head_size > 0


def elide(text: str, *, lines: int = SHOWN_LINES, last: int = SHOWN_LAST_LINES) -> str:
    """Shortens text to ``lines`` lines, of which ``last`` are its last ones; a marker counts the lines left out.

    Lines that are too long for a notebook lose their middle, see ``cut``.
    """
    parts = text.splitlines(keepends=True)
    if len(parts) > lines:
        first = lines - last
        text = "".join([*parts[:first], f"... {len(parts) - lines:,} lines left out ...\n", *parts[-last:]])
    return cut(text)


def cut(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Cuts the middle out of a text of more than so many characters; a marker counts those left out."""
    left_out = len(text) - characters
    if left_out <= 0:
        return text
    half = characters // 2
    return f"{text[:half]}\n... {left_out:,} characters left out ...\n{text[-half:]}"


@dataclass(frozen=True)
class CellFailure:
    """An exception that a cell raised on a rank: class name, message, and traceback as text with ANSI colours."""

    ename: str
    evalue: str
    traceback: str


@dataclass
class Piece:
    """One output of a cell.

    ``kind``: ``stdout`` or ``stderr``, with ``text``; or ``display`` or ``result``, with a MIME bundle in ``data``.
    """

    kind: str
    text: BoundedText = field(default_factory=BoundedText)
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def key(self) -> tuple[str, str]:
        """Returns a key that is equal for pieces that are displayed alike, progress bars at any point among them."""
        if self.is_text:
            return self.kind, without_progress(str(self.text))
        return self.kind, repr(sorted(self.data.items()))

    @property
    def is_text(self) -> bool:
        """Whether this is text of a stream."""
        return self.kind in ("stdout", "stderr")


@dataclass
class RankOutput:
    """The output of one rank for one cell. ``pieces``: in the order of arrival. ``error``: set when the cell failed."""

    rank: int
    pieces: list[Piece] = field(default_factory=list)
    error: CellFailure | None = None

    def add_text(self, kind: str, text: str) -> None:
        """Adds text of a stream; continues the last piece if it is of the same stream."""
        if not self.pieces or self.pieces[-1].kind != kind:
            self.pieces.append(Piece(kind))
        self.pieces[-1].text.append(text)

    def add_data(self, kind: str, data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Adds a MIME bundle. ``kind``: ``display`` or ``result``."""
        self.pieces.append(Piece(kind, data=data, metadata=metadata or {}))

    @property
    def stdout(self) -> str:
        """The whole standard output."""
        return "".join(str(piece.text) for piece in self.pieces if piece.kind == "stdout")

    @property
    def stderr(self) -> str:
        """The whole standard error."""
        return "".join(str(piece.text) for piece in self.pieces if piece.kind == "stderr")

    @property
    def displays(self) -> list[dict[str, Any]]:
        """The MIME bundles of rich displays, in order."""
        return [piece.data for piece in self.pieces if piece.kind == "display"]

    @property
    def result(self) -> str | None:
        """The ``repr`` of the cell's last expression, or None when it has none."""
        results = [piece.data.get("text/plain") for piece in self.pieces if piece.kind == "result"]
        return results[-1] if results else None


@dataclass(frozen=True)
class Block:
    """Ranks with equal output, and that output."""

    ranks: tuple[int, ...]
    pieces: tuple[Piece, ...]


def group_output(outputs: Mapping[int, RankOutput]) -> list[Block]:
    """Groups ranks with equal output, ordered by their lowest rank. Leaves out ranks without output.

    A rank with a rich display (a figure) forms a group of its own. Of progress bars, a group shows that of the rank
    that is last.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for rank in sorted(outputs):
        pieces = outputs[rank].pieces
        separate_rank = rank if any(piece.kind == "display" for piece in pieces) else None
        if pieces:
            groups.setdefault((separate_rank, *(piece.key() for piece in pieces)), []).append(rank)
    return [Block(tuple(ranks), tuple(_merged({rank: outputs[rank] for rank in ranks}))) for ranks in groups.values()]


def _merged(alike: Mapping[int, RankOutput]) -> list[Piece]:
    """The pieces that stand for those of ranks with equal keys."""
    first = next(iter(alike.values())).pieces
    if len(alike) == 1:
        return first
    merged = []
    for place, piece in enumerate(first):
        texts = {rank: str(output.pieces[place].text) for rank, output in alike.items()}
        if piece.is_text and "\r" in texts[min(texts)]:
            merged.append(Piece(piece.kind))
            merged[-1].text.append(slowest_bars(texts))
        else:
            merged.append(piece)
    return merged


def group_errors(outputs: Mapping[int, RankOutput]) -> list[tuple[tuple[int, ...], CellFailure]]:
    """Groups ranks with the same error (class name and message). Each group has the error of its lowest rank.

    The errors that most ranks raised come first; errors of ranks that were released from a collective come last.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for rank in sorted(outputs):
        error = outputs[rank].error
        if error is not None:
            groups.setdefault((error.ename, error.evalue), []).append(rank)
    grouped: list[tuple[tuple[int, ...], CellFailure]] = []
    for ranks in groups.values():
        first = outputs[ranks[0]].error
        assert first is not None
        grouped.append((tuple(ranks), first))
    return sorted(grouped, key=lambda group: (group[1].ename == RELEASED, -len(group[0])))

"""What ranks print, in the panel: equal lines of several ranks are one, and the newest are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from widgets.panel.console import MOST_NEW, Console
from widgets.panel.fold import Folded, ranges


def test_what_ranks_say_alike_is_one_entry() -> None:
    folded = Folded(most=10)
    for rank in (0, 1, 2):
        folded.add("same", rank, text="same")
    folded.add("own", 1, text="own")
    assert [(e["text"], e["ranks"], e["count"]) for e in folded.news()] == [("same", "0-2", 1), ("own", "1", 1)]
    for rank in (0, 1, 2):
        folded.add("same", rank, text="same")  # once more, by all
    # rank 1 says it again after something of its own: that is another place in its output
    assert [(e["text"], e["ranks"]) for e in folded.news()] == [("same", "0-2"), ("same", "1-2")]
    for number in range(20):
        folded.add(number, 0, text=str(number))
    assert [e["text"] for e in folded.all()] == [str(number) for number in range(10, 20)]


def test_a_line_repeated_by_all_ranks_is_counted_once() -> None:
    folded = Folded(most=10)
    for _ in range(3):
        for rank in (0, 1):
            folded.add("x", rank, text="x")
    assert [(e["ranks"], e["count"]) for e in folded.all()] == [("0-1", 3)]


@pytest.mark.parametrize(("ranks", "text"), [({0}, "0"), ({0, 1, 2, 5}, "0-2,5"), (set(range(1024)), "0-1023")])
def test_ranges(ranks: set[int], text: str) -> None:
    assert ranges(ranks) == text


def write(run: Path, rank: int, text: str) -> None:
    file = run / f"rank-{rank:05d}" / "output.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def test_console_follows_files_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    console = Console(tmp_path, 2)
    console.read()
    assert console.news() == []
    write(tmp_path, 0, "hello\nhalf")
    write(tmp_path, 1, "hello\n")
    console.read()
    assert [(e["text"], e["ranks"]) for e in console.news()] == [("hello", "0-1")]
    write(tmp_path, 0, " a line\nprogress 1\rprogress 2\n")
    console.read()
    assert [e["text"] for e in console.news()] == ["half a line", "progress 2"]


def test_console_of_a_flood_shows_the_newest(tmp_path: Path) -> None:
    console = Console(tmp_path, 1)
    console.read()
    write(tmp_path, 0, "".join(f"line {number}\n" for number in range(5000)))
    console.read()
    news = console.news()
    assert (len(news), news[-1]["text"]) == (MOST_NEW, "line 4999")
    late = Console(tmp_path, 1)
    write(tmp_path, 0, "x" * 100_000 + "\nlast\n")
    late.read()
    assert late.all()[-1]["text"] == "last"

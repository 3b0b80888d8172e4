"""Choosing, sorting and writing rows; and the subcommand that does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_run import make_fake_run
from workbench.cli import main as cli
from workbench.errors import ConfigError
from workbench.history import listing
from workbench.history.row import RunRow

ROWS = [
    RunRow(directory="a-one", name="one", when=1.0, recipe="x", best_loss=2.0, state="finished", tags=("good", "p")),
    RunRow(directory="b-two", name="two", when=2.0, recipe="y", best_loss=None, state="failed", tags=("good",)),
    RunRow(directory="c-two", name="two", when=3.0, recipe="y", best_loss=1.0, state="finished", ranks=4),
]


def names(rows: list[RunRow]) -> str:
    return "".join(row.directory[0] for row in rows)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, "abc"),
        ({"names": ["two"]}, "bc"),
        ({"names": ["b-*", "one"]}, "ab"),
        ({"states": ["failed"]}, "b"),
        ({"tags": ["good", "p"]}, "a"),
        ({"where": ["best_loss<1.5"]}, "c"),
        ({"where": ["best_loss >= 1", "recipe=x"]}, "a"),
        ({"where": ["recipe!=y"]}, "a"),
        ({"where": ["ranks==4"]}, "c"),
        ({"where": ["tags=good"]}, "ab"),
        ({"where": ["tags!=good"]}, "c"),
    ],
)
def test_choosing(choice: dict[str, list[str]], expected: str) -> None:
    assert names(listing.choose(ROWS, **choice)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "said"), [("loss", "not a condition"), ("bestloss<1", "did you mean"), ("ranks<x", "with a number")]
)
def test_conditions_that_cannot_be_read(condition: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        listing.choose(ROWS, where=[condition])


def test_sorting_puts_what_is_not_known_last() -> None:
    assert names(listing.sort(ROWS, "best_loss")) == "cab"
    assert names(listing.sort(ROWS, "best_loss", descending=True)) == "acb"
    assert names(listing.sort(ROWS)) == "abc" and names(listing.sort(ROWS, descending=True)) == "cba"
    with pytest.raises(ConfigError, match="did you mean 'state'"):
        listing.sort(ROWS, "stat")


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (25e6, "25 MB"), (3e12, "3.0 TB")]
)
def test_sizes(count: float, expected: str) -> None:
    assert listing.size(count) == expected


def test_a_plain_table_has_its_columns_under_their_heads() -> None:
    lines = listing.text_table(ROWS).splitlines()
    assert lines[0].split()[0] == "run" and "validation" not in lines[0]  # nobody validated
    column = lines[0].index("best loss") + len("best loss")
    assert lines[1][column - 1] == "2" and lines[3][column - 1] == "1" and len(lines) == 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    make_fake_run(tmp_path / "runs" / "2026-05-01-120000-first", steps=10)
    make_fake_run(tmp_path / "runs" / "2026-05-02-120000-second", steps=10, state="failed")
    return tmp_path / "runs"


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert cli.main(["runs", *words]) == code
    caught = capsys.readouterr()
    return caught.out + caught.err


def test_list_for_scripts_and_people(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(told(capsys, "list", "--json"))
    assert [row["directory"] for row in data] == ["2026-05-01-120000-first", "2026-05-02-120000-second"]
    assert data[0]["best_loss"] > 1 and data[0]["tags"] == [] and data[1]["best_validation"] > 1
    assert told(capsys, "--last", "1", "list", "--json") == told(capsys, "list", "--json", "--last", "1")
    assert "first" not in told(capsys, "--state", "failed") and "2 runs, " in told(capsys)
    assert "no runs in" in told(capsys, "--tag", "none") and "that match" in told(capsys, "--tag", "none")
    assert "unknown column" in told(capsys, "--sort", "x", code=2)


def test_labels_from_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "tag", "first", "good", "paper") == "2026-05-01-120000-first: good, paper\n"
    assert told(capsys, "tag", "first", "--remove", "good") == "2026-05-01-120000-first: paper\n"
    assert "one word" in told(capsys, "tag", "first", "two words", code=2)
    assert told(capsys, "note", "first", "to", "be", "kept") == "2026-05-01-120000-first: to be kept\n"
    assert "to be kept" in told(capsys, "note", "first") and "to be kept" in told(capsys)
    assert "no note" in told(capsys, "note", "first", "")
    shown = told(capsys, "show", "first")
    assert "paper" in shown and "spec.toml" in shown and "10" in shown
    assert json.loads(told(capsys, "show", "first", "--json"))["tags"] == ["paper"]


def test_removing_asks(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pass --yes" in told(capsys, "rm", "first", code=1)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert told(capsys, "rm", "first", code=1) and len(list(home.glob("2026*"))) == 2
    assert (
        "no run 'none'" in told(capsys, "rm", "first", "none", "--yes", code=1) and len(list(home.glob("2026*"))) == 2
    )
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert "freed" in told(capsys, "rm", "first") and len(list(home.glob("2026*"))) == 1


def test_archive_restore_and_prune(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = told(capsys, "archive", "first").split()[0]
    assert "first" not in told(capsys)
    assert told(capsys, "restore", packed).strip() == str(home / "2026-05-01-120000-first")
    assert "would remove 1 runs" in told(capsys, "prune", "--keep", "1", "--dry-run") and "first" in told(capsys)
    told(capsys, "tag", "first", "keep")
    assert told(capsys, "prune", "--keep", "1") == "nothing to prune\n"
    told(capsys, "tag", "first", "--remove", "keep")
    assert "pass --yes" in told(capsys, "prune", "--keep", "1", code=1)
    assert "removed 1 run" in told(capsys, "prune", "--keep", "1", "--yes") and "second" in told(capsys)
    assert "nothing" in told(capsys, "prune", "--older-than", "1d") and "nothing says which runs" in told(
        capsys, "prune", code=2
    )

"""Tab in a notebook and in a terminal: flags, recipes, plugins, names of runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tests.fake_run import make_fake_run

Completes = Callable[[str], set[str]]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    for name in ("first", "second"):
        make_fake_run(tmp_path / f"2026-01-01-000000-{name}", steps=2)
    return tmp_path


@pytest.fixture
def after(runs: Path) -> Iterator[Completes]:
    """``after(text)``: what Tab offers at the end of the text."""
    import magics

    config = Config(
        {"Workbench": {"warm": False}, "HistoryManager": {"enabled": False}, "Completer": {"use_jedi": False}}
    )
    shell = InteractiveShell(config=config)
    magics.load(shell)

    def offered(text: str) -> set[str]:
        return set(shell.complete(None, text, len(text))[1])

    yield offered
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("%dist_train --rec", {"--recipe"}),
        ("run = %dist_train --recipe stdlib-llama --pl", {"--placement", "--plan", "--plugin"}),
        ("%%dist_train --no-f", {"--no-final-checkpoint"}),
        ("%dist_train --batch_", {"--batch_size"}),
        ("%dist_train --recipe dig", {"digits-vit"}),
        ("%dist_train --recipe=dig", {"digits-vit"}),
        ("run = %dist_train dig", {"digits-vit"}),
        ("%dist_train --plugin ze", {"zero1", "zero2", "zero3"}),
        ("%dist_train --algorithm po", {"powersgd", "post-local-sgd"}),
        ("%dist_train --framework torch --plugin ", {"ddp"}),
        ("%dist_train --precision ", {"fp32", "bf16", "fp16"}),
        ("%dist_train --resume fi", {"first"}),
        ("%dist_report se", {"second"}),
        ("%dist_compare first se", {"second"}),
        ("%dist_stop --run fi", {"first"}),
        ("%dist_stop c", {"checkpoint"}),
        ("%dist_set cl", {"clip="}),
        ("%dist_branch save", {"save_every=", "save_best="}),
        ("%dist_pull --int", {"--into"}),
        ("%%dist --tar", {"--targets"}),
        ("%dist_watch ", {"first", "second"}),
    ],
)
def test_a_magic_is_completed(text: str, offered: set[str], after: Completes) -> None:
    assert offered <= after(text)
    if not text.endswith(" "):
        assert {each for each in after(text) if not each.startswith("%")} == offered


def test_a_flag_is_offered_once(after: Completes) -> None:
    assert "--tp" not in after("%dist_train --tp 2 --")
    assert {"--pp", "--recipe"} <= after("%dist_train --tp 2 --")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("workbench tra", {"train"}),
        ("workbench train --recipe dig", {"digits-vit"}),
        ("workbench train --plugin ze", {"zero1", "zero2", "zero3"}),
        ("workbench report se", {"second"}),
        ("workbench runs tag fi", {"first"}),
        ("workbench control first che", {"checkpoint"}),
    ],
)
def test_the_command_line_is_completed(line: str, offered: set[str], runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    out = tmp_path / "offered"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
    }
    subprocess.run(
        [sys.executable, "-m", "workbench.cli.main"], env={**os.environ, **asked, "_ARGCOMPLETE_IFS": "\n"}, check=False
    )
    assert {each.strip() for each in out.read_text().splitlines()} == offered

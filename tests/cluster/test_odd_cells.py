"""Cells that break what a rank needs for its reply: the prompt comes back, and the next cell works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.waiting import until
from workbench.cluster.output import CellFailure
from workbench.cluster.session import Session

BROKEN = "class Broken:\n    def write(self, text): pass\n    def flush(self): raise OSError('no disk')\n"


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (
            "import io, sys\nsys.stdout = io.StringIO()\nsys.stdout.close()",
            "",
            "ValueError: I/O operation on closed file",
        ),
        (f"import sys\n{BROKEN}sys.stderr = Broken()", "", "OSError: no disk"),
        ("import sys\nsys.stdout = None\nsys.stderr.close()", "", ""),
        ("import sys\nsys.stdout.close()\nprint('\\ud800')", "", "\\ud800"),
        ("raise ValueError('\\ud800')", "ValueError: \\ud800", ""),
        (
            "class E(Exception):\n    def __str__(self): raise RuntimeError('of str')\nraise E",
            "RuntimeError: of str",
            "",
        ),
        ("raise BaseExceptionGroup('both', [KeyboardInterrupt(), KeyError(2)])", "BaseExceptionGroup: both", ""),
        ("raise SystemExit(3)", "SystemExit: 3", ""),
        ("exit()", "", "exit ends no rank: %dist_down does"),
        ("import asyncio\nawait asyncio.sleep(0.01)\nprint('woke')", "", "woke"),
        ("import asyncio\nawait asyncio.sleep(0)\n1 / 0", "ZeroDivisionError: ", ""),
        ("from workbench.cluster.session import Session\nSession.up(2)", "ClusterError: this process is a rank", ""),
    ],
)
def test_a_rank_replies_and_prints_afterwards(ranks: Session, code: str, error: str, words: str) -> None:
    pids = ranks.pids
    ranks.push({"kept": 5})
    found = ranks.execute(code)[1]
    told = "" if found.error is None else f"{found.error.ename}: {found.error.evalue}"
    assert told.startswith(error) if error else told == ""
    assert words in found.stdout + found.stderr
    ranks.push({"more": 1})  # another way to a rank, which flushes its streams as well
    assert ranks.execute("print('seen', kept + more)")[1].stdout == "seen 6\n"
    assert ranks.pids == pids


@pytest.mark.parametrize("code", ["%reset -f", "globals().clear()"])
def test_names_that_cells_find_come_back(ranks: Session, code: str) -> None:
    ranks.execute(code)
    assert ranks.execute("rank, world_size")[1].result == "(1, 2)"


AWAITS = ["await asyncio.Event().wait()", "await asyncio.sleep(0)\nwhile True:\n    pass"]


@pytest.mark.parametrize("code", AWAITS, ids=["in what it awaits", "in its own code"])
def test_a_cell_that_awaits_is_interrupted(ranks: Session, tmp_path: Path, code: str) -> None:
    flag = tmp_path / "reached"
    ranks.execute(f"import asyncio, pathlib\nflag, kept = pathlib.Path({str(flag)!r}), 5").raise_on_error()
    cell = ranks.submit(f"if rank == 0:\n    flag.touch()\n{code}", [0])
    until(flag.exists)
    ranks.interrupt_cell(cell)
    error = cell.error(0)
    assert isinstance(error, CellFailure) and error.ename == "KeyboardInterrupt"
    assert ranks.execute("kept")[0].result == "5"


def test_the_message_of_an_error_is_bounded(ranks: Session) -> None:
    error = ranks.execute("raise ValueError('z' * 1_000_000)", [0])[0].error
    assert error is not None and len(error.evalue) < 11_000 and len(error.traceback) < 210_000
    assert "characters left out" in error.evalue


def test_a_kernel_that_fails_replies_all_the_same(ranks: Session) -> None:
    ranks.execute(
        "import IPython\nshell = get_ipython()\nshell.run_cell = shell.run_cell_async = None"
    ).raise_on_error()
    error = ranks.execute("1", [0])[0].error
    assert error is not None and error.ename == "TypeError" and "the kernel of this rank failed" in error.evalue
    ranks.restart_ranks([0, 1])
    assert ranks.execute("rank")[1].result == "1"

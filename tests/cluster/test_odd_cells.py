"""Cells that break what a rank needs for its reply: the prompt comes back, and the next cell works."""

from __future__ import annotations

import pytest

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


def test_the_message_of_an_error_is_bounded(ranks: Session) -> None:
    error = ranks.execute("raise ValueError('z' * 1_000_000)", [0])[0].error
    assert error is not None and len(error.evalue) < 11_000 and len(error.traceback) < 210_000
    assert "characters left out" in error.evalue

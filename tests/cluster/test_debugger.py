"""``breakpoint()`` in a cell: commands reach the ranks that they are meant for, and the cell goes on."""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.error import StdinNotImplementedError
from IPython.core.interactiveshell import InteractiveShell

from magics.cluster import ClusterMagics
from magics.why import WhyMagics
from tests.cluster.conftest import LIGHT
from tests.shell import bare_shell
from tests.waiting import WAIT_S, until
from workbench.cluster import cells
from workbench.cluster.debugger import dialogue
from workbench.cluster.session import Session
from workbench.diagnosis import view
from workbench.diagnosis.causes import Cause
from workbench.errors import CellError, CellInterrupt, ClusterError
from workbench.run.why import why_session

FUNCTION = "def f(x):\n    y = x + rank\n    breakpoint()\n    y *= 2\n    return y\nz = f(3)"
CTRL_C = "^C"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setitem(Session.up.__func__.__kwdefaults__, "preload", LIGHT)  # type: ignore[attr-defined]
    with bare_shell() as shell:
        shell.register_magics(ClusterMagics, WhyMagics)
        yield shell


@pytest.fixture(autouse=True)
def slow_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of a busy machine take their time to answer a command, and who asks what they do."""
    monkeypatch.setattr(dialogue, "_ANSWER_S", WAIT_S)
    monkeypatch.setattr(view, "_ANSWER_S", WAIT_S)


@pytest.fixture
def both_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt comes when both ranks have stopped, however far apart they are."""
    monkeypatch.setattr(dialogue, "_WAITING_S", WAIT_S)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that are typed at the prompt, one after the other; each prompt and line is printed."""
    lines: list[str] = []

    def ask(prompt: str) -> str:
        line = lines.pop(0)
        print(f"{prompt}{line}")
        if line == CTRL_C:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr(builtins, "input", ask)
    return lines


def test_commands_go_to_all_ranks_or_to_one(
    ranks: Session, shell: InteractiveShell, both_stop: None, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["p y", "n", "@1", "p y", "y = 50", "w", "@0 p y", "@7", "@all", "c"]
    shell.run_cell_magic("dist", "", FUNCTION)
    shown = capsys.readouterr().out
    parts = shown.split("(rank")
    assert "ranks 0-1\n> line 3 of the cell, f()\n-> breakpoint()\nranks 0-1 are in the debugger, line 3" in parts[0]
    assert parts[1] == "s 0-1) p y\nrank 0\n3\nrank 1\n4\n"
    assert parts[2] == "s 0-1) n\nranks 0-1\n> line 4 of the cell, f()\n-> y *= 2\n"
    assert parts[4] == " 1) p y\nrank 1\n4\n"
    assert parts[6] == " 1) w\nrank 1\n  line 6 of the cell\n-> z = f(3)\n> line 4 of the cell, f()\n-> y *= 2\n"
    assert parts[7] == " 1) @0 p y\nrank 0\n3\n" and "rank 7 in -t '7', but 2 ranks are up" in parts[8]
    assert parts[10] == "s 0-1) c\n" and not typed
    assert ranks.pull("z") == {0: 6, 1: 100}


def test_a_breakpoint_in_a_library_stops_there(
    *,
    ranks: Session,
    shell: InteractiveShell,
    typed: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    library = tmp_path / "library_of_others.py"
    library.write_text("def double(x):\n    breakpoint()\n    y = 2 * x\n    return y\n")
    os.utime(library, (time.time() - 60,) * 2)  # one that is as new as its import would be reloaded to be safe
    typed += ["p x", "n", "n", "p y", "u", "p mine", "c"]
    cell = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport library_of_others\nmine = 7 + rank\n"
    shell.run_cell_magic(
        "dist", "-t 1", f"{cell}z = library_of_others.double(mine)\nsys.path.remove({str(tmp_path)!r})"
    )
    parts = capsys.readouterr().out.split("(rank 1) ")
    assert "library_of_others.py(2)double()\n-> breakpoint()\n" in parts[0] and parts[1] == "p x\n8\n"
    assert parts[4] == "p y\n16\n" and "line 5 of the cell" in parts[5] and parts[6] == "p mine\n8\n" and not typed
    assert ranks.pull("z", [1]) == {1: 16}


def test_steps_lead_from_statement_to_statement_and_end_with_the_cell(
    ranks: Session, shell: InteractiveShell, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += ["n", "n", "b f", "c", "c"]
    shell.run_cell_magic("dist", "-t 1", "def f():\n    return 5\nbreakpoint()\na = 1\nb = 2\nc = f()")
    parts = capsys.readouterr().out.split("(rank 1) ")
    assert parts[1] == "n\n> line 4 of the cell\n-> a = 1\n" and parts[2] == "n\n> line 5 of the cell\n-> b = 2\n"
    assert parts[4] == "c\n> line 2 of the cell, f()\n-> return 5\n" and not typed
    assert ranks.pull(["a", "b", "c"], [1]) == {1: {"a": 1, "b": 2, "c": 5}}
    shell.run_cell_magic("dist", "-t 1", "f()")  # the breakpoint ended with its cell
    assert capsys.readouterr().out == "rank 1\n5\n"


def test_a_rank_in_the_debugger_is_told_and_no_time_counts(
    ranks: Session, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, clock = [], time.monotonic
    monkeypatch.setattr(cells, "time", SimpleNamespace(monotonic=lambda: clock() + 3600 * len(found)))

    def ask(prompt: str) -> str:
        found.append(why_session(ranks))  # and an hour has passed
        return "c"

    monkeypatch.setattr(builtins, "input", ask)
    shell.run_cell_magic("dist", "--timeout 300", "if rank == 1:\n    import pdb\n    pdb.set_trace()\n'went on'")
    assert found[0].cause == Cause.DEBUGGER and found[0].missing == (1,)
    assert found[0].headline.startswith("rank 1 is in the debugger, line 3 of the cell: pdb.set_trace()")
    assert found[0].ranks[1].phase == "debugger" and "%dist_debug" in found[0].advice
    assert "ranks 0-1\n'went on'\n" in capsys.readouterr().out


def test_ctrl_c_and_quit_leave_the_debugger(
    ranks: Session, shell: InteractiveShell, both_stop: None, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed += [CTRL_C]
    result = shell.run_cell(f"%%dist\n{FUNCTION}")
    assert isinstance(result.error_in_exec, CellInterrupt)
    until(lambda: not ranks.is_busy())
    typed += ["q"]
    with pytest.raises(CellError, match="BdbQuit"):
        shell.run_cell_magic("dist", "", FUNCTION)
    shell.run_cell_magic("dist", "", "1 + 1")
    assert capsys.readouterr().out.endswith("ranks 0-1\n2\n")


def test_where_nothing_can_be_typed_breakpoints_are_passed_over(
    ranks: Session, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(prompt: str) -> str:
        raise StdinNotImplementedError("this front end has no input")

    monkeypatch.setattr(builtins, "input", ask)
    shell.run_cell_magic("dist", "", "for _ in range(1000): breakpoint()\n'through'")
    shown = capsys.readouterr().out
    assert shown.count("no commands can be typed here") == 1 and shown.endswith("ranks 0-1\n'through'\n")


def test_post_mortem_opens_where_a_cell_failed_and_frees_it_afterwards(
    ranks: Session, shell: InteractiveShell, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CellError, match="ZeroDivisionError"):
        shell.run_cell_magic(
            "dist",
            "",
            "import weakref\nclass Large: pass\ndef g(n):\n    held = Large()\n    global seen\n"
            "    seen = weakref.ref(held)\n    return n / 0\nif rank == 1:\n    g(8)",
        )
    typed += ["p n", "u", "q"]
    shell.run_line_magic("dist_debug", "")
    parts = capsys.readouterr().out.split("(rank 1) ")
    assert "> line 7 of the cell, g()\n-> return n / 0\n" in parts[0]
    assert parts[1] == "p n\n8\n" and parts[2] == "u\n> line 9 of the cell\n-> g(8)\n"
    assert ranks.execute("seen()", [1]).raise_on_error()[1].result is None
    with pytest.raises(ClusterError, match="ranks 0-1 neither stopped at a breakpoint nor failed"):
        shell.run_line_magic("dist_debug", "")

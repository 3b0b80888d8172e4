"""Progress in a terminal, from run directories."""

import io
from pathlib import Path

from rich.console import Console

from tests.fake_run import LiveFakeRun, make_fake_run
from workbench.commands.follow import follow


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=20, step_s=0.05)
    out = io.StringIO()
    follow(lambda: [run.path], lambda: run.status == "finished", every=5, console=Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 7 and "step 20/20" in lines[-1] and "finished" in lines[-1] and "loss" in lines[-1]


def test_bars_in_a_terminal(tmp_path: Path) -> None:
    done = make_fake_run(tmp_path / "run", steps=20)
    half = tmp_path / "half"
    half.mkdir()  # a run directory whose spec is not written yet
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    follow(lambda: [done, half], lambda: True, console=console)
    assert "fake" in out.getvalue() and "20/20" in out.getvalue() and "finished" in out.getvalue()

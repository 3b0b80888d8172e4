"""The progress of runs in a terminal, read from their run directories."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.fake_run import LiveFakeRun, fake_spec, make_fake_run
from tests.waiting import WAIT_S
from workbench.errors import RunError
from workbench.telemetry import progress
from workbench.telemetry.derive import seconds_per_step
from workbench.telemetry.store import Store
from workbench.terminal.follow import follow, follow_in_background


def test_lines_without_a_terminal(tmp_path: Path) -> None:
    run = LiveFakeRun(tmp_path / "run", steps=20, step_s=0.05)
    run.control("step", 5)
    out, due = io.StringIO(), [5, 10, 15]

    def is_finished() -> bool:
        """The run goes on when the line of its step is there."""
        if run.status == "paused" and due and f"step {due[0]}/20" in out.getvalue():
            del due[0]
            run.control("step", 5)
        return run.status == "finished"

    follow(lambda: [run.path], is_finished, steps_per_line=5, console=Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert 4 <= len(lines) <= 7 and "step 20/20" in lines[-1] and "finished" in lines[-1] and "loss" in lines[-1]


def test_bars_in_a_terminal(tmp_path: Path) -> None:
    done = make_fake_run(tmp_path / "run", steps=20)
    half = tmp_path / "half"
    half.mkdir()  # a run directory whose spec is not written yet
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    follow(lambda: [done, half], lambda: True, console=console)
    assert "fake" in out.getvalue() and "20/20" in out.getvalue() and "finished" in out.getvalue()


class Ended:
    """A run of this process that failed, with its directory."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.spec = path, "fake", fake_spec(steps=20)

    def ended(self) -> bool:
        return True

    def raise_if_failed(self) -> None:
        raise RunError("run 'fake' failed", traceback="line 3 of the cell")


def test_the_background_thread_prints_lines_and_a_failure_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follow_in_background(Ended(make_fake_run(tmp_path / "run", steps=20)))
    for thread in threading.enumerate():
        if thread.name == "progress-fake":
            thread.join(WAIT_S)
    out = capsys.readouterr().out
    assert out.count("step 20/20") == 1 and out.count("line 3 of the cell") == 1


def test_the_remaining_time_includes_pauses_and_evaluations(tmp_path: Path) -> None:
    step, time = np.arange(1.0, 101.0), np.arange(1.0, 101.0) * 0.1
    time[60:] += 4.0  # an evaluation
    assert seconds_per_step(step, time) == pytest.approx((time[-1] - time[50]) / 49)
    assert np.isnan(seconds_per_step(step[:1], time[:1])) and np.isnan(seconds_per_step(step[:0], time[:0]))
    store = Store(make_fake_run(tmp_path / "run", state="running"))
    store.refresh()
    now = progress.snapshot(store)
    assert now.eta_s == pytest.approx((now.steps - now.step) * 0.12, rel=0.01)

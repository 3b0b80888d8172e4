"""A command that runs as a child: its exit status, its signals, and that it is the script that it would be alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import has_ended, until
from workbench.terminal.child_process import run_child

ROOT = Path(__file__).parents[3]
RUN = """
import os, sys
from workbench.terminal.child_process import end_by, run_child
command = [sys.executable, *sys.argv[1:]]
status = os.waitstatus_to_exitcode(run_child(sys.executable, command, os.environ, pid_name="ME"))
if status < 0:
    end_by(-status)
sys.exit(status)
"""


def as_child(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("", 0),
        ("import sys; sys.exit()", 0),
        ("raise SystemExit('went wrong')", 1),
        ("import os; os._exit(9)", 9),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_its_exit_status_is_ours(script: str, code: int) -> None:
    status = run_child(sys.executable, [sys.executable, "-c", script], os.environ, pid_name="ME")
    assert os.waitstatus_to_exitcode(status) == code


def test_it_knows_its_process_id_and_gets_the_signals_that_we_get() -> None:
    wait = "import os, signal; print(os.environ['ME'] == str(os.getpid()), signal.pthread_sigmask(0, []), flush=True)"
    process = as_child(f"{wait}; signal.pause()")
    assert process.stdout is not None and process.stdout.readline() == "True set()\n"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGUSR1


def test_it_is_killed_when_we_are() -> None:
    process = as_child("import signal; print(flush=True); signal.pause()")
    assert process.stdout is not None and process.stdout.readline() == "\n"
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    until(lambda: has_ended(child.pid))


def test_what_cannot_be_executed_is_told(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("no program")
    with pytest.raises(PermissionError):
        run_child(str(tmp_path / "none"), ["none"], os.environ, pid_name="ME")

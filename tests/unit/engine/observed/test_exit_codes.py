"""What ends a script, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEFORE = """
import atexit, sys, threading
from workbench.engine.observed.watched.exit_codes import ExitCode
code = ExitCode()
code.begin()
atexit.register(lambda: print("failure:", None if code.failure is None else code.failure.code))
def nested():
    raise SystemExit(9)
"""


@pytest.mark.parametrize(
    ("script", "returned", "failure"),
    [
        ("", 0, "None"),
        ("sys.exit()", 0, "None"),
        ("raise SystemExit(1 != 1)", 0, "None"),
        ("raise SystemExit(1 != 2)", 1, "True"),
        ("raise SystemExit('went wrong')", 1, "went wrong"),
        ("sys.exit('went wrong')", 1, "went wrong"),
        ("exit(4)", 4, "4"),
        ("nested()", 9, "9"),
        ("try: sys.exit(2)\nexcept SystemExit: pass", 0, "None"),
        ("try: nested()\nexcept BaseException as error: kept = error", 0, "None"),
        ("import argparse; argparse.ArgumentParser().parse_args(['--unknown'])", 2, "2"),
        ("thread = threading.Thread(target=nested); thread.start(); thread.join()", 0, "None"),
    ],
)
def test_a_code_that_nobody_catches_is_found(script: str, returned: int, failure: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEFORE + script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (returned, f"failure: {failure}\n")
    assert "Traceback" not in done.stderr

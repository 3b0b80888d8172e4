"""Readable reasons for the end of a process."""

import pytest

from workbench.cluster.base.processes import exit_reason


@pytest.mark.parametrize(
    ("status", "oom_kills", "expected"),
    [
        (0, 0, "its process left with exit code 0"),
        (3, 0, "its process left with exit code 3"),
        (-9, 0, "killed by signal 9 (SIGKILL)"),
        (-9, 1, "out of memory"),
        (-11, 0, "killed by signal 11 (SIGSEGV): a crash in native code"),
        (-7, 0, "/dev/shm"),
        (-200, 0, "killed by signal 200 (unknown)"),
    ],
)
def test_reason(status, oom_kills, expected):
    assert expected in exit_reason(status, oom_kills=oom_kills)

"""Descriptions of how a process ended."""

import pytest

from workbench.cluster.base.processes import describe_exit


@pytest.mark.parametrize(
    ("status", "oom_kills", "expected"),
    [
        (0, 0, "its process ended with exit code 0"),
        (3, 0, "its process ended with exit code 3"),
        (-9, 0, "killed by signal 9 (SIGKILL)"),
        (-9, 1, "out of memory"),
        (-11, 0, "killed by signal 11 (SIGSEGV): invalid memory access in native code"),
        (-7, 0, "/dev/shm"),
        (-200, 0, "killed by signal 200 (unknown)"),
    ],
)
def test_description_of_an_exit_code(status, oom_kills, expected):
    assert expected in describe_exit(status, oom_kills=oom_kills)

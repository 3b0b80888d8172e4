"""Descriptions of how a process ended, and the end of several."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import has_ended, until
from workbench.cluster.base import processes
from workbench.cluster.base.processes import describe_exit
from workbench.cluster.hosts import oom


@pytest.mark.parametrize(
    ("status", "oom_kills", "expected"),
    [
        (0, 0, "its process ended with exit code 0"),
        (3, 0, "its process ended with exit code 3"),
        (-9, 0, "killed by signal 9 (SIGKILL)"),
        (-9, 1, "out of memory (out-of-memory killer): use a smaller batch"),
        (-11, 0, "killed by signal 11 (SIGSEGV): invalid memory access in native code"),
        (-7, 0, "/dev/shm"),
        (-200, 0, "killed by signal 200 (unknown)"),
    ],
)
def test_description_of_an_exit_code(status, oom_kills, expected):
    assert expected in describe_exit(status, oom_kills=oom_kills)


def test_a_kill_for_want_of_memory_is_told_with_what_the_kernel_logged():
    told = describe_exit(-9, kernel_log="the limit of its cgroup was used up")
    assert "SIGKILL): out of memory (out-of-memory killer) (the limit of its cgroup was used up): use a smaller" in told


def test_a_fatal_signal_is_told_with_its_place():
    told = describe_exit(-11, place="line 3 of the cell in read")
    assert told == "killed by signal 11 (SIGSEGV): invalid memory access in native code; at line 3 of the cell in read"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("Memory cgroup out of memory: Killed process 41 (python) total-vm:9kB, anon-rss:2000kB, file-rss:1kB",
         "the limit of its cgroup, of which it held 2.05 MB, was used up"),
        ("Out of memory: Killed process 41 (python) total-vm:9kB, anon-rss:3000000kB",
         "the memory of the host, of which it held 3.07 GB, was used up"),
        ("Out of memory: Killed process 412 (python) total-vm:9kB", ""),
    ],
)  # fmt: skip
def test_the_kernels_log(record, words, tmp_path, monkeypatch):
    log = tmp_path / "kmsg"
    log.write_text(f"6,339,1303618,-;EXT4-fs (vda): mounted\n3,340,1303619,-;{record}\n")
    monkeypatch.setattr(oom, "_KERNEL_LOG", log)
    assert oom.kill_in_kernel_log(41) == words


#: waits for the end of what writes into its input, and says that it saw it
SEES = "import pathlib, sys; print(flush=True); sys.stdin.read(); pathlib.Path(sys.argv[1]).touch()"


def test_none_sees_the_end_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that saw its peer end would log that it failed, of a run that was lost with its kernel."""
    kill, seen = processes.kill_group, tmp_path / "seen"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    first = subprocess.Popen(["sleep", "600"], **pipes)
    second = subprocess.Popen([sys.executable, "-c", SEES, str(seen)], **{**pipes, "stdin": first.stdout})
    first.stdout.close()
    assert second.stdout.readline() == b"\n"

    def slow_kill(leader: int) -> None:
        kill(leader)
        until(lambda: has_ended(leader))
        until(lambda: seen.exists() or processes.is_stopped(second.pid) or has_ended(second.pid))

    monkeypatch.setattr(processes, "kill_group", slow_kill)
    processes.end_groups([first.pid, second.pid])
    assert not seen.exists() and (first.wait(), second.wait()) == (-9, -9)
    second.stdout.close()
    first.stdin.close()

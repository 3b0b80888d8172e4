"""Child processes that end with their parent, and whose process group is killed when they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Makes the kernel send SIGKILL to this process when ``parent`` ends, the process that forked it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def adopt_orphans() -> None:
    """Makes this process the new parent of every descendant whose own parent ends, so that it can end them all."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def fork(body: Callable[[], None], *, log: Path, keep: Iterable[int] | None = None) -> int:
    """Forks a child that runs ``body`` in a session of its own and ends with this process. Returns its pid.

    ``log``: the file that receives stdout and stderr of the child. ``keep``: file descriptors that the child keeps
    besides 0 to 2 (None: all). The exit code is 0 when ``body`` returns, that of ``SystemExit``, or 1.

    Call it from the main thread only: the kernel sends the signal of ``die_with_parent`` when the forking thread ends.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent(parent)
        os.setsid()
        _reset_signals()
        _redirect_output(log)
        if keep is not None:
            _close_descriptors_except(keep)
        body()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        # Skip the interpreter's shutdown: the frames below this one belong to the parent.
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
        os._exit(status)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect_output(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)


def _close_descriptors_except(keep: Iterable[int]) -> None:
    kept_descriptors = {0, 1, 2, *keep}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept_descriptors:
            with contextlib.suppress(OSError):
                os.close(int(name))


def reap() -> Iterator[tuple[int, int]]:
    """Reaps children that have ended: yields the pid and raw wait status of each. Kills their process groups first."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        kill_group(ended.si_pid)  # before the child is reaped, because its pid cannot be reused until then
        yield os.waitpid(ended.si_pid, 0)


def is_stopped(pid: int) -> bool:
    """Returns whether a process is stopped, by a signal or a debugger; False where that cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text[text.rindex(")") + 2] in "Tt"


def kill_group(leader: int) -> None:
    """Sends SIGKILL to the process group of a child of ``fork``. Does nothing when the group has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_groups(leaders: Iterable[int]) -> None:
    """Kills the process groups of children of ``fork``. All are stopped first, so that none sees another one end."""
    leaders = list(leaders)
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGSTOP)
    for leader in leaders:
        kill_group(leader)


def end_children(timeout_s: float) -> None:
    """Kills and reaps children until none is left, for at most ``timeout_s`` seconds.

    After ``adopt_orphans`` this ends every descendant.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    deadline = time.monotonic() + timeout_s
    while (pids := [int(pid) for pid in children.read_text().split()]) and time.monotonic() < deadline:
        for pid in pids:
            kill_group(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for _ in reap():
            pass
        time.sleep(0.01)


def open_signal_pipe(*numbers: signal.Signals) -> int:
    """Returns a non-blocking file descriptor that receives one byte, the signal number, for each of these signals.

    SIGINT is ignored from then on.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def exit_code(wait_status: int) -> int:
    """Converts a raw wait status to an exit code, which is negative for a signal."""
    return os.waitstatus_to_exitcode(wait_status)


def describe_exit(status: int, *, oom_kills: int = 0, kernel_log: str = "", place: str = "") -> str:
    """Describes an exit code (negative: a signal) for the user.

    ``oom_kills``: how many processes of the cgroup the out-of-memory killer ended while the process ran;
    ``kernel_log``: what the kernel's log says of that. ``place``: where the process was, of one that a signal ended.
    """
    if status >= 0:
        return f"its process ended with exit code {status}"
    number = -status
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    reason = f"killed by signal {number} ({name})"
    hints = {
        signal.SIGSEGV: "invalid memory access in native code",
        signal.SIGBUS: "access to mapped memory that has no backing, often because /dev/shm is full",
        signal.SIGABRT: "native code aborted, often after an error of NCCL, gloo or CUDA",
    }
    if number == signal.SIGKILL and (oom_kills > 0 or kernel_log):
        told = f" ({kernel_log})" if kernel_log else ""
        return f"{reason}: out of memory (out-of-memory killer){told}: use a smaller batch or fewer ranks"
    if number in hints:
        reason = f"{reason}: {hints[signal.Signals(number)]}"
    return f"{reason}; at {place}" if place else reason

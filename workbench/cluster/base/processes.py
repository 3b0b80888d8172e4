"""Forking without leaving anything behind: children that die with their parent, reaping with their whole group."""

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


def die_with(parent: int) -> None:
    """Have the kernel send SIGKILL to this process when ``parent``, which forked it, ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none escapes."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def fork(body: Callable[[], None], *, log: Path, keep: Iterable[int] | None = None) -> int:
    """Fork a child that runs ``body`` in its own session, dies with this process, and writes raw output to ``log``.

    ``keep``: descriptors the child keeps besides 0 to 2; None keeps all. Call from the main thread only: the parent
    death signal is tied to the thread that forks. Returns the child's pid; the child never returns.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with(parent)
        os.setsid()
        _plain_signals()
        _redirect(log)
        if keep is not None:
            _close_all_but(keep)
        body()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        # No interpreter shutdown: the stack below belongs to the parent.
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
        os._exit(status)


def _plain_signals() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)


def _close_all_but(keep: Iterable[int]) -> None:
    kept = {0, 1, 2, *keep}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def reap() -> Iterator[tuple[int, int]]:
    """(pid, wait status) of every child that has ended; what is left of its process group is killed first."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        kill_group(ended.si_pid)  # not reaped yet, so the number is still this child's
        yield os.waitpid(ended.si_pid, 0)


def kill_group(leader: int) -> None:
    """SIGKILL to a process group that ``fork`` made; nothing when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_children(timeout_s: float) -> None:
    """Kill children and reap them until none is left; after ``adopt_orphans`` that ends every descendant."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    deadline = time.monotonic() + timeout_s
    while (pids := [int(pid) for pid in listed.read_text().split()]) and time.monotonic() < deadline:
        for pid in pids:
            kill_group(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for _ in reap():
            pass
        time.sleep(0.01)


def wake_on_signals(*numbers: signal.Signals) -> int:
    """A non-blocking descriptor on which one byte, the number, appears for each such signal. SIGINT is ignored."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reader


def exit_status(wait_status: int) -> int:
    """Exit code of a raw wait status, negative for a signal."""
    return os.waitstatus_to_exitcode(wait_status)


def exit_reason(status: int, *, oom_kills: int = 0) -> str:
    """Readable reason for an exit status; ``oom_kills``: how often the out-of-memory killer struck meanwhile."""
    if status >= 0:
        return f"its process left with exit code {status}"
    number = -status
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    reason = f"killed by signal {number} ({name})"
    hints = {
        signal.SIGSEGV: "a crash in native code",
        signal.SIGBUS: "a memory map beyond its file, often a full /dev/shm",
        signal.SIGABRT: "native code gave up, often after an error from NCCL, gloo or CUDA",
    }
    if number == signal.SIGKILL and oom_kills > 0:
        return f"{reason}: out of memory, the kernel's out-of-memory killer struck: use a smaller batch or fewer ranks"
    if number in hints:
        return f"{reason}: {hints[signal.Signals(number)]}"
    return reason

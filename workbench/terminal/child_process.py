"""A command run as a child process, for its exit status: its signals and its end become those of this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from workbench.cluster.base.processes import die_with_parent

#: what other processes may send to the command by sending it to us; a terminal sends to both by itself
_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGWINCH,
)
_EXEC_FAILED = 126


def run_child(program: str, command: Sequence[str], environment: Mapping[str, str], *, pid_name: str) -> int:
    """Run ``program`` in this process group, with the terminal and the streams of this process, until it ends.

    It finds its own process id in the environment variable ``pid_name``. Signals that other processes send to this one
    are passed on; the kernel kills it when this process is killed. Returns its wait status (``os.waitpid``). Raises
    ``OSError`` when it cannot be executed. Call it from the main thread.
    """
    waited = {*_FORWARDED, signal.SIGCHLD}
    failed, told = os.pipe()  # closed by a successful exec
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # were it ignored, the status would be lost
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                die_with_parent(parent)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                os.execve(program, list(command), {**environment, pid_name: str(os.getpid())})
            except OSError as error:
                os.write(told, str(error.errno).encode())
            finally:
                os._exit(_EXEC_FAILED)
        os.close(told)
        number = os.read(failed, 16)
        status = _until_ended(child, waited)
    finally:
        os.close(failed)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if number:
        raise OSError(int(number), os.strerror(int(number)))
    return status


def _until_ended(child: int, waited: set[signal.Signals]) -> int:
    """Pass on signals until the child has ended; returns its wait status."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        received = signal.sigwaitinfo(waited)
        sent_by_a_process = received.si_code <= 0  # what the terminal sends comes from the kernel
        if received.si_signo != signal.SIGCHLD and sent_by_a_process:
            os.kill(child, received.si_signo)


def end_by(number: int) -> NoReturn:
    """End this process by the signal ``number``, as a child did."""
    sys.stdout.flush()
    sys.stderr.flush()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the signal is blocked

"""Warm processes: they have called the preload function and wait to start a rank.

For ranks on the CPU, one warm process forks all of them; it has used one thread only, so that forks are safe. For ranks
on GPUs there is one warm process per GPU, which becomes the rank itself, because a fork after these imports breaks
CUDA. The rank server uses the same messages for both.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workbench.cluster.base.processes import fork, open_signal_pipe, reap
from workbench.cluster.base.protocol import Forked, LineBuffer, RankSpec, Reaped, Warmth, encode
from workbench.cluster.hosts.placement import CPU
from workbench.cluster.server.rank import become_rank
from workbench.cluster.server.text_bars import use_text_bars


def run_preload(preload: str) -> Callable[[], object] | None:
    """Imports and calls ``"package.module:function"`` ("": none). Returns its result if that is callable, or None."""
    if not preload:
        return None
    module, _, name = preload.partition(":")
    result = getattr(importlib.import_module(module), name)()
    return result if callable(result) else None


@dataclass(frozen=True, kw_only=True)
class WarmSpec:
    """The kind of a warm process. It starts ranks with the same device, preload function and Python interpreter."""

    device: str
    preload: str = ""
    python: str = ""

    @classmethod
    def for_rank(cls, rank: RankSpec, default_preload: str) -> WarmSpec:
        """Returns the kind of warm process that a rank starts from."""
        preload = default_preload if rank.preload is None else rank.preload
        python = "" if rank.python == sys.executable else rank.python
        return cls(device=rank.device, preload=preload, python=python)


def start_warm_process(spec: WarmSpec, channel: socket.socket, directory: Path) -> None:
    """Runs this process, a new child of the server, as a warm process.

    With ``spec.python``, the process executes that interpreter first; its environment must contain this package,
    ipyparallel and all that the preload function imports. ``channel``: connection to the server. ``directory``: private
    directory of the server, for logs.
    """
    if not spec.python:
        run_warm_process(spec, channel, directory)
        return
    os.set_inheritable(channel.fileno(), True)
    environment = {**os.environ, "PYTHONPATH": _drop_site_packages(os.environ.get("PYTHONPATH", ""))}
    command = [spec.python, "-P", "-m", "workbench.cluster.server.warm", "--channel-fd", str(channel.fileno())]
    command += ["--directory", str(directory), "--device", spec.device]
    command += ["--python", spec.python, "--preload", spec.preload]
    os.execve(spec.python, command, environment)


def _drop_site_packages(path: str) -> str:
    """Removes directories of installed packages from a PYTHONPATH: they belong to the current interpreter only."""
    kept = [entry for entry in path.split(os.pathsep) if Path(entry).name not in ("site-packages", "dist-packages")]
    return os.pathsep.join(kept)


def run_warm_process(spec: WarmSpec, channel: socket.socket, directory: Path) -> None:
    """Calls the preload function, reports the result to the server, and starts ranks until the channel is closed."""
    device, preload = spec.device, spec.preload
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device == CPU else device
    use_text_bars()
    started = time.monotonic()
    spec_fields = dataclasses.asdict(spec)
    try:
        after_start = run_preload(preload)
    except BaseException as error:  # the server reports it to the user, whatever it is
        detail = (
            f"preload function {preload!r} failed: {type(error).__name__}: {error}; check the installation of the "
            f"framework with: workbench doctor\n{traceback.format_exc()}"
        )
        channel.sendall(encode(Warmth(**spec_fields, state="failed", detail=detail)))
        raise SystemExit(1) from error
    channel.sendall(encode(Warmth(**spec_fields, state="warm", seconds=time.monotonic() - started)))
    if device == CPU:
        _fork_ranks(channel, directory, after_start)
    else:
        _wait_for_rank(channel, directory, after_start)


def rank_log_path(directory: Path, rank: int) -> Path:
    """Returns the file for the raw output of a rank, which ipyparallel does not capture."""
    return directory / f"rank-{rank:05d}.log"


def _fork_ranks(channel: socket.socket, directory: Path, after_start: Callable[[], object] | None) -> None:
    wakeup = open_signal_pipe(signal.SIGCHLD)
    buffer = LineBuffer()
    while True:
        ready, _, _ = select.select([channel.fileno(), wakeup], [], [])
        if wakeup in ready:
            os.read(wakeup, 4096)
            for pid, wait_status in reap():
                channel.sendall(encode(Reaped(pid=pid, wait_status=wait_status)))
        if channel.fileno() in ready:
            data = channel.recv(65536)
            if not data:
                return
            for spec in buffer.feed(data):
                pid = _fork_rank(spec, channel, wakeup, directory, after_start)
                channel.sendall(encode(Forked(rank=spec.rank, pid=pid)))


def _fork_rank(
    spec: RankSpec, channel: socket.socket, wakeup: int, directory: Path, after_start: Callable[[], object] | None
) -> int:
    def body() -> None:
        os.close(channel.detach())
        os.close(wakeup)
        become_rank(spec, directory, after_start)

    return fork(body, log=rank_log_path(directory, spec.rank))


def _wait_for_rank(channel: socket.socket, directory: Path, after_start: Callable[[], object] | None) -> None:
    buffer = LineBuffer()
    while True:
        data = channel.recv(65536)
        if not data:
            return
        for spec in buffer.feed(data):
            channel.sendall(encode(Forked(rank=spec.rank, pid=os.getpid())))
            os.close(channel.detach())
            out = os.open(rank_log_path(directory, spec.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.close(out)
            become_rank(spec, directory, after_start)
            return


def main() -> None:
    """Entry point of a warm process with another interpreter than that of the server."""
    parser = argparse.ArgumentParser(prog="workbench.cluster.server.warm")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--python", required=True)  # as in the request; sys.executable may be another path
    parser.add_argument("--preload", default="")
    options = parser.parse_args()
    spec = WarmSpec(device=options.device, preload=options.preload, python=options.python)
    run_warm_process(spec, socket.socket(fileno=options.channel_fd), options.directory)


if __name__ == "__main__":
    main()

"""Warm processes: everything imported, waiting to be told a rank.

On CPU one process forks every rank (it has computed with one thread only, so its children may). A process bound to a
GPU becomes the rank itself, as a fork after those imports breaks CUDA. The server speaks to both in the same way.
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


def run_preload(preload: str) -> Callable[[], object] | None:
    """Import and call ``"package.module:function"`` ("": nothing); what it returns, if that can be called."""
    if not preload:
        return None
    module, _, name = preload.partition(":")
    found = getattr(importlib.import_module(module), name)()
    return found if callable(found) else None


@dataclass(frozen=True, kw_only=True)
class WarmSpec:
    """Which ranks a warm process serves: those of one device, preload function and Python interpreter."""

    device: str
    preload: str = ""
    python: str = ""

    @classmethod
    def of(cls, rank: RankSpec, first_preload: str) -> WarmSpec:
        """The kind of warm process that this rank starts from."""
        preload = first_preload if rank.preload is None else rank.preload
        python = "" if rank.python == sys.executable else rank.python
        return cls(device=rank.device, preload=preload, python=python)


def become_warm(spec: WarmSpec, channel: socket.socket, directory: Path) -> None:
    """Body of a fresh child of the server: ``run_warm`` in it, or in the other interpreter that is asked for.

    The other interpreter's environment has to have this package, ipyparallel and what the preload function needs.
    """
    if not spec.python:
        run_warm(spec, channel, directory)
        return
    os.set_inheritable(channel.fileno(), True)
    environment = {**os.environ, "PYTHONPATH": _without_site_packages(os.environ.get("PYTHONPATH", ""))}
    words = [spec.python, "-P", "-m", "workbench.cluster.server.warm", "--channel-fd", str(channel.fileno())]
    words += ["--directory", str(directory), "--device", spec.device]
    words += ["--python", spec.python, "--preload", spec.preload]
    os.execve(spec.python, words, environment)


def _without_site_packages(path: str) -> str:
    """Packages that were installed for one interpreter are not for another."""
    kept = [entry for entry in path.split(os.pathsep) if Path(entry).name not in ("site-packages", "dist-packages")]
    return os.pathsep.join(kept)


def run_warm(spec: WarmSpec, channel: socket.socket, directory: Path) -> None:
    """Body of a warm process: preload, say so, then serve ``RankSpec`` lines until the channel ends."""
    device, preload = spec.device, spec.preload
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device == CPU else device
    started = time.monotonic()
    kind = dataclasses.asdict(spec)
    try:
        after_start = run_preload(preload)
    except BaseException as error:  # whatever it is, the server has to tell it
        detail = f"preload {preload!r} failed: {type(error).__name__}: {error}\n{traceback.format_exc()}"
        channel.sendall(encode(Warmth(**kind, state="failed", detail=detail)))
        raise SystemExit(1) from error
    channel.sendall(encode(Warmth(**kind, state="warm", seconds=time.monotonic() - started)))
    if device == CPU:
        _fork_ranks(channel, directory, after_start)
    else:
        _wait_to_become(channel, directory, after_start)


def rank_log(directory: Path, rank: int) -> Path:
    """Where a rank's raw output goes (what ipyparallel does not capture)."""
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
        become_rank(spec, after_start)

    return fork(body, log=rank_log(directory, spec.rank))


def _wait_to_become(channel: socket.socket, directory: Path, after_start: Callable[[], object] | None) -> None:
    buffer = LineBuffer()
    while True:
        data = channel.recv(65536)
        if not data:
            return
        for spec in buffer.feed(data):
            channel.sendall(encode(Forked(rank=spec.rank, pid=os.getpid())))
            os.close(channel.detach())
            out = os.open(rank_log(directory, spec.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.close(out)
            become_rank(spec, after_start)
            return


def main() -> None:
    """A warm process of another interpreter than the server's, which started it."""
    parser = argparse.ArgumentParser(prog="workbench.cluster.server.warm")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--python", required=True)  # as the server calls it; sys.executable may be another spelling
    parser.add_argument("--preload", default="")
    options = parser.parse_args()
    spec = WarmSpec(device=options.device, preload=options.preload, python=options.python)
    run_warm(spec, socket.socket(fileno=options.channel_fd), options.directory)


if __name__ == "__main__":
    main()

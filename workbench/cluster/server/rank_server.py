"""The rank server: one process per host that owns ranks, controller and warm processes, and outlives none of them.

Started by ``client.RankServer`` as ``python -m workbench.cluster.server.rank_server``. It is single-threaded and
imports no training framework, so it answers at once whatever its children do. Everything it starts dies with it
(parent-death signal); it ends, and removes its directory, when its owner closes the connection or dies (two watches:
the connection and the owner's pid).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import os
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.cluster.base import protocol as p
from workbench.cluster.base.processes import (
    adopt_orphans,
    describe_exit,
    end_children,
    exit_code,
    fork,
    kill_group,
    open_signal_pipe,
    reap,
)
from workbench.cluster.hosts.machine import count_oom_kills
from workbench.cluster.hosts.placement import CPU
from workbench.cluster.server.controller import run_controller
from workbench.cluster.server.warm import WarmSpec, become_warm, rank_log

_TAIL_BYTES = 4000


@dataclass
class _Warm:
    """A warm process, or one still warming. ``wanted``: ranks it was told and has not started yet."""

    pid: int
    spec: WarmSpec
    log: str
    channel: socket.socket
    buffer: p.LineBuffer = field(default_factory=p.LineBuffer)
    wanted: list[p.RankSpec] = field(default_factory=list)
    started: list[int] = field(default_factory=list)


@dataclass
class _Rank:
    pid: int
    rank: int
    oom_kills: int


class Server:
    """State and loop of the rank server. Only the main thread of its process uses it."""

    def __init__(self, owner: socket.socket, owner_pid: int, directory: Path, first: list[WarmSpec]) -> None:
        self._owner_pidfd = os.pidfd_open(owner_pid)
        self._owner = owner
        self._directory = directory
        self._buffer = p.LineBuffer()
        self._selector = selectors.DefaultSelector()
        self._warm: dict[int, _Warm] = {}  # by pid
        self._ranks: dict[int, _Rank] = {}  # by pid
        self._controller = 0
        self._controller_asked = 0  # id of the request that waits for it
        self._starting: dict[int, set[int]] = {}  # request id -> ranks not yet forked
        self._stopping: list[tuple[int, float]] = []  # (request id, when to kill)
        self._leaving = False
        self._wakeup = open_signal_pipe(signal.SIGCHLD, signal.SIGTERM)
        self._first = first
        self._logs = itertools.count(1)
        self._watch(self._wakeup, self._on_signal)
        self._watch(self._owner_pidfd, self._leave)
        self._watch(owner, self._on_request)

    # --- the loop

    def run(self) -> None:
        """Serve until the owner leaves or asks to end; then end everything."""
        try:
            for spec in self._first:
                self._warm_up(spec)
            while not self._leaving:
                for key, _ in self._selector.select(self._timeout()):
                    key.data()
                self._kill_late()
        finally:
            self._end_all()

    def _watch(self, file: Any, answer: Callable[[], object]) -> None:
        self._selector.register(file, selectors.EVENT_READ, answer)

    def _timeout(self) -> float | None:
        return max(0.0, min(when for _, when in self._stopping) - time.monotonic()) if self._stopping else None

    def _leave(self) -> None:
        self._leaving = True

    def _say(self, message: p.Message) -> None:
        try:
            self._owner.sendall(p.encode(message))
        except OSError:
            self._leaving = True

    def _on_signal(self) -> None:
        if signal.SIGTERM in os.read(self._wakeup, 4096):
            self._leaving = True
        for pid, wait_status in reap():
            self._hear_last_words(pid)
            self._on_child_end(pid, exit_code(wait_status))

    def _on_request(self) -> None:
        try:
            data = self._owner.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._leaving = True
            return
        for request in self._buffer.feed(data):
            match request:
                case p.StartController():
                    self._start_controller(request)
                case p.StartRanks():
                    self._start_ranks(request)
                case p.SignalRanks():
                    self._signal(request.ranks, request.signum)
                    self._say(p.Reply(id=request.id))
                case p.StopRanks():
                    self._stop_ranks(request)
                case p.Shutdown():
                    self._signal([rank.rank for rank in self._ranks.values()], signal.SIGTERM)
                    self._wait_ranks(request.grace_s)
                    self._leaving = True
                case _:
                    self._say(p.Reply(id=getattr(request, "id", 0), error=f"unexpected {type(request).__name__}"))

    # --- warm processes

    def _warm_up(self, spec: WarmSpec) -> _Warm:
        ours, theirs = socket.socketpair()
        log = f"warm-{next(self._logs)}"
        pid = fork(
            lambda: become_warm(spec, theirs, self._directory),
            log=self._directory / f"{log}.log",
            keep=[theirs.fileno()],
        )
        theirs.close()
        warm = self._warm[pid] = _Warm(pid=pid, spec=spec, log=log, channel=ours)
        self._watch(ours, lambda: self._on_warm(warm))
        return warm

    def _on_warm(self, warm: _Warm) -> bool:
        """Hear what a warm process says; whether there was anything."""
        try:
            data = warm.channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # the end, which SIGCHLD tells, or a spare that became a rank
            self._close_channel(warm)
            return False
        for message in warm.buffer.feed(data):
            match message:
                case p.Warmth():
                    if message.state == "failed":
                        self._fail_wanted(warm, message.detail)
                    self._say(message)
                case p.Forked():
                    self._on_forked(warm, message)
                case p.Reaped():
                    self._on_child_end(message.pid, exit_code(message.wait_status))
        return True

    def _close_channel(self, warm: _Warm) -> None:
        if warm.channel.fileno() >= 0:
            self._selector.unregister(warm.channel)
            warm.channel.close()
        if warm.started:
            self._warm.pop(warm.pid, None)

    def _hear_last_words(self, pid: int) -> None:
        """What a warm process that has ended said before, so that its end is not taken for another's."""
        warm = self._warm.get(pid)
        while warm is not None and self._on_warm(warm):
            pass

    def _fail_wanted(self, warm: _Warm, detail: str) -> None:
        wanted = {spec.rank for spec in warm.wanted}
        warm.wanted.clear()
        for request, ranks in list(self._starting.items()):
            if ranks & wanted:
                del self._starting[request]
                self._say(p.Reply(id=request, error=detail))

    def _pick(self, spec: WarmSpec) -> _Warm:
        """A warm process of this kind: the forking one, or a spare that has no rank yet; a new one if there is none."""
        for warm in self._warm.values():
            if warm.spec == spec and (spec.device == CPU or not (warm.wanted or warm.started)):
                return warm
        return self._warm_up(spec)

    # --- ranks

    def _start_ranks(self, request: p.StartRanks) -> None:
        taken = {rank.rank for rank in self._ranks.values()} & {spec.rank for spec in request.ranks}
        if taken:
            self._say(p.Reply(id=request.id, error=f"ranks {sorted(taken)} are up already: stop them first"))
            return
        self._starting[request.id] = {spec.rank for spec in request.ranks}
        for spec in request.ranks:
            rank_log(self._directory, spec.rank).unlink(missing_ok=True)
            warm = self._pick(WarmSpec.of(spec, self._first[0].preload))
            warm.wanted.append(spec)
            # A failing send means that it just ended: SIGCHLD tells, and answers the request.
            with contextlib.suppress(OSError):
                warm.channel.sendall(p.encode(spec))

    def _on_forked(self, warm: _Warm, message: p.Forked) -> None:
        warm.wanted = [spec for spec in warm.wanted if spec.rank != message.rank]
        self._ranks[message.pid] = _Rank(pid=message.pid, rank=message.rank, oom_kills=count_oom_kills())
        self._say(p.RankStarted(rank=message.rank, pid=message.pid))
        for request, ranks in list(self._starting.items()):
            ranks.discard(message.rank)
            if not ranks:
                del self._starting[request]
                self._say(p.Reply(id=request))
        if warm.spec.device != CPU:
            warm.started.append(message.rank)
            self._warm_up(warm.spec)

    def _signal(self, ranks: list[int], signum: int) -> None:
        for rank in self._ranks.values():
            if rank.rank in ranks:
                with contextlib.suppress(ProcessLookupError):  # ended, and not told yet
                    os.kill(rank.pid, signum)

    def _stop_ranks(self, request: p.StopRanks) -> None:
        self._stopping.append((request.id, time.monotonic() + request.grace_s))
        self._signal([rank.rank for rank in self._ranks.values()], signal.SIGTERM)
        self._answer_stopped()

    def _answer_stopped(self) -> None:
        if not self._ranks:
            for request, _ in self._stopping:
                self._say(p.Reply(id=request))
            self._stopping.clear()

    def _kill_late(self) -> None:
        if self._stopping and time.monotonic() >= min(when for _, when in self._stopping):
            self._stopping = [(request, time.monotonic() + 1.0) for request, _ in self._stopping]
            for rank in self._ranks.values():
                kill_group(rank.pid)

    def _on_child_end(self, pid: int, status: int) -> None:
        if pid in self._ranks:
            rank = self._ranks.pop(pid)
            self._warm.pop(pid, None)
            reason = describe_exit(status, oom_kills=count_oom_kills() - rank.oom_kills)
            self._say(
                p.RankExited(
                    rank=rank.rank, pid=pid, status=status, reason=reason, tail=self._tail(f"rank-{rank.rank:05d}")
                )
            )
            self._answer_stopped()
        elif pid in self._warm:
            warm = self._warm.pop(pid)
            self._close_channel(warm)
            detail = f"the process that keeps ranks warm ended ({describe_exit(status)})\n{self._tail(warm.log)}"
            self._fail_wanted(warm, detail)
            self._say(p.Warmth(**dataclasses.asdict(warm.spec), state="failed", detail=detail))
        elif pid == self._controller:
            self._on_controller_end(status)

    def _tail(self, name: str) -> str:
        try:
            data = (self._directory / f"{name}.log").read_bytes()
        except OSError:
            return ""
        return data[-_TAIL_BYTES:].decode(errors="replace")

    # --- controller

    def _start_controller(self, request: p.StartController) -> None:
        if self._controller:
            self._say(p.Reply(id=request.id, error="a controller runs already"))
            return
        reader, writer = os.pipe()
        self._controller_asked = request.id
        self._controller = fork(
            lambda: run_controller(request, writer), log=self._directory / "controller.log", keep=[writer]
        )
        os.close(writer)

        def on_ready() -> None:
            line = os.read(reader, 4096)
            self._selector.unregister(reader)
            os.close(reader)
            if line:  # else it ended, which SIGCHLD tells
                self._controller_asked = 0
                self._say(p.decode(line))
                self._say(p.Reply(id=request.id))

        self._watch(reader, on_ready)

    def _on_controller_end(self, status: int) -> None:
        pid, self._controller = self._controller, 0
        reason = describe_exit(status)
        if self._controller_asked:
            error = f"the controller did not start ({reason})\n{self._tail('controller')}"
            self._say(p.Reply(id=self._controller_asked, error=error))
            self._controller_asked = 0
        else:  # nothing can reach the ranks any more
            self._say(p.ControllerExited(pid=pid, reason=reason))
            self._leaving = True

    # --- the end

    def _wait_ranks(self, grace_s: float) -> None:
        """Let ranks that were told to end do so."""
        end = time.monotonic() + grace_s
        while self._ranks and time.monotonic() < end:
            for key, _ in self._selector.select(max(0.0, end - time.monotonic())):
                if key.fileobj is not self._owner:
                    key.data()

    def _end_all(self) -> None:
        """Kill what is left, children of children too, and remove the directory."""
        if self._controller:
            os.kill(self._controller, signal.SIGTERM)  # it removes its connection files
            end = time.monotonic() + 0.5
            while self._controller and time.monotonic() < end:
                for pid, wait_status in reap():
                    self._on_child_end(pid, exit_code(wait_status))
                time.sleep(0.01)
            if self._controller:
                kill_group(self._controller)
        for pid in (*self._ranks, *self._warm):
            kill_group(pid)
        end_children(2.0)


def main(arguments: list[str] | None = None) -> None:
    """Serve the owner's connection, which arrives on an inherited listening socket."""
    parser = argparse.ArgumentParser(prog="workbench.cluster.server.rank_server")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--owner-pid", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--python", default="")
    parser.add_argument("--devices", default="")
    options = parser.parse_args(arguments)
    os.setsid()  # Ctrl-C in the owner's terminal is not for ranks
    adopt_orphans()
    try:
        _serve(options)
    except ProcessLookupError:
        return  # the owner ended before this process was ready
    finally:
        shutil.rmtree(options.directory, ignore_errors=True)


def _serve(options: argparse.Namespace) -> None:
    with socket.socket(fileno=options.listen_fd) as listener:
        owner, _ = listener.accept()
    # Imported once, here: every child is forked with it.
    import ipyparallel.controller.app
    import ipyparallel.controller.heartmonitor
    import ipyparallel.engine.app  # noqa: F401

    devices = [name for name in options.devices.split(",") if name] or [CPU]
    first = [WarmSpec(device=device, preload=options.preload, python=options.python) for device in devices]
    Server(owner, options.owner_pid, options.directory, first).run()


if __name__ == "__main__":
    main()

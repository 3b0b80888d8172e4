"""The rank server: a process that owns the ranks, the controller and the warm processes of one notebook.

``client.RankServer`` starts it as ``python -m workbench.cluster.server.rank_server``. It is single-threaded and imports
no training framework, so it answers quickly whatever its children do. Its children get SIGKILL when it ends
(parent-death signal). It ends and removes its directory when its owner closes the connection or ends; it watches both
the connection and the process of the owner.
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
from pathlib import Path
from typing import Any

from workbench.cluster.base import protocol as p
from workbench.cluster.base.calls import call_in_ranks
from workbench.cluster.base.processes import (
    adopt_orphans,
    describe_exit,
    end_children,
    end_groups,
    exit_code,
    fork,
    kill_group,
    open_signal_pipe,
    reap,
)
from workbench.cluster.hosts.oom import count_oom_kills, kill_in_kernel_log
from workbench.cluster.hosts.placement import CPU
from workbench.cluster.server.children import RunningRank, WarmProcess, read_log_tail
from workbench.cluster.server.controller import run_controller
from workbench.cluster.server.interruptible import announce_interrupt
from workbench.cluster.server.warm import WarmSpec, rank_log_path, start_warm_process
from workbench.core.live.stack_text import fatal_place
from workbench.errors import format_ranks


class Server:
    """The state and the event loop of the rank server. Used by the main thread only.

    ``owner``: connection to the owner. ``directory``: for logs. ``initial``: warm processes to start at once; the
    preload function of the first is the server's own.
    """

    def __init__(self, owner: socket.socket, owner_pid: int, directory: Path, initial: list[WarmSpec]) -> None:
        self._owner_pidfd = os.pidfd_open(owner_pid)
        self._owner = owner
        self._directory = directory
        self._buffer = p.LineBuffer()
        self._selector = selectors.DefaultSelector()
        self._warm: dict[int, WarmProcess] = {}  # by pid
        self._ranks: dict[int, RunningRank] = {}  # by pid
        self._controller = 0  # pid; 0: none
        self._controller_request = 0  # id of the request that waits for the controller; 0: none
        self._pending_ranks: dict[int, set[int]] = {}  # request id -> ranks that have no process yet
        self._stop_requests: list[tuple[int, float]] = []  # (request id, monotonic time to send SIGKILL)
        self._is_ending = False
        self._wakeup = open_signal_pipe(signal.SIGCHLD, signal.SIGTERM)
        self._initial = initial
        self._log_numbers = itertools.count(1)
        self._watch(self._wakeup, self._on_signal)
        self._watch(self._owner_pidfd, self._request_end)
        self._watch(owner, self._on_request)

    # --- event loop

    def run(self) -> None:
        """Serves requests until the owner ends or sends ``Shutdown``; then ends all children."""
        try:
            for spec in self._initial:
                self._start_warm_process(spec)
            while not self._is_ending:
                for key, _ in self._selector.select(self._timeout()):
                    key.data()
                self._kill_overdue_ranks()
        finally:
            self._end_all()

    def _watch(self, file: Any, handler: Callable[[], object]) -> None:
        self._selector.register(file, selectors.EVENT_READ, handler)

    def _timeout(self) -> float | None:
        return (
            max(0.0, min(when for _, when in self._stop_requests) - time.monotonic()) if self._stop_requests else None
        )

    def _request_end(self) -> None:
        self._is_ending = True

    def _send(self, message: p.Message) -> None:
        try:
            self._owner.sendall(p.encode(message))
        except OSError:
            self._is_ending = True

    def _on_signal(self) -> None:
        if signal.SIGTERM in os.read(self._wakeup, 4096):
            self._is_ending = True
        for pid, wait_status in reap():
            self._handle_last_messages(pid)
            self._on_child_end(pid, exit_code(wait_status))

    def _on_request(self) -> None:
        try:
            data = self._owner.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._is_ending = True
            return
        for request in self._buffer.feed(data):
            match request:
                case p.StartController():
                    self._start_controller(request)
                case p.StartRanks():
                    self._start_ranks(request)
                case p.SignalRanks():
                    if request.signum == signal.SIGINT:
                        announce_interrupt(self._directory, request.ranks, request.sent)
                    self._signal(request.ranks, request.signum)
                    self._send(p.Reply(id=request.id))
                case p.CallInRanks():
                    self._send(p.Reply(id=request.id, error=call_in_ranks(self._directory, request)))
                case p.StopRanks():
                    self._stop_ranks(request)
                case p.Shutdown():
                    self._signal([rank.rank for rank in self._ranks.values()], signal.SIGTERM)
                    self._wait_ranks(request.grace_s)
                    self._is_ending = True
                case _:
                    self._send(p.Reply(id=getattr(request, "id", 0), error=f"unexpected {type(request).__name__}"))

    # --- warm processes

    def _start_warm_process(self, spec: WarmSpec) -> WarmProcess:
        ours, theirs = socket.socketpair()
        log = f"warm-{next(self._log_numbers)}"
        pid = fork(
            lambda: start_warm_process(spec, theirs, self._directory),
            log=self._directory / f"{log}.log",
            keep=[theirs.fileno()],
        )
        theirs.close()
        warm = self._warm[pid] = WarmProcess(pid=pid, spec=spec, log=log, channel=ours)
        self._watch(ours, lambda: self._on_warm_process(warm))
        return warm

    def _on_warm_process(self, warm: WarmProcess) -> bool:
        """Handles received messages of a warm process. Returns whether there were any."""
        try:
            data = warm.channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # it has ended, which SIGCHLD reports, or it has become a rank
            self._close_channel(warm)
            return False
        for message in warm.buffer.feed(data):
            match message:
                case p.Warmth():
                    if message.state == "failed":
                        self._fail_assigned_ranks(warm, message.detail)
                    self._send(message)
                case p.Forked():
                    self._on_forked(warm, message)
                case p.Reaped():
                    self._on_child_end(message.pid, exit_code(message.wait_status))
        return True

    def _close_channel(self, warm: WarmProcess) -> None:
        if warm.channel.fileno() >= 0:
            self._selector.unregister(warm.channel)
            warm.channel.close()
        if warm.started:
            self._warm.pop(warm.pid, None)

    def _handle_last_messages(self, pid: int) -> None:
        """Handles the last messages of a warm process that has ended; one may say that it became a rank."""
        warm = self._warm.get(pid)
        while warm is not None and self._on_warm_process(warm):
            pass

    def _fail_assigned_ranks(self, warm: WarmProcess, detail: str) -> None:
        assigned = {spec.rank for spec in warm.assigned}
        warm.assigned.clear()
        for request, ranks in list(self._pending_ranks.items()):
            if ranks & assigned:
                del self._pending_ranks[request]
                self._send(p.Reply(id=request, error=detail))

    def _get_warm_process(self, spec: WarmSpec) -> WarmProcess:
        """Returns a warm process of this kind that can start a rank; starts one if there is none.

        For the CPU that is the process that forks; for a GPU, one that has no rank yet.
        """
        for warm in self._warm.values():
            if warm.spec == spec and (spec.device == CPU or not (warm.assigned or warm.started)):
                return warm
        return self._start_warm_process(spec)

    # --- ranks

    def _start_ranks(self, request: p.StartRanks) -> None:
        taken = {rank.rank for rank in self._ranks.values()} & {spec.rank for spec in request.ranks}
        if taken:
            self._send(p.Reply(id=request.id, error=f"{format_ranks(taken)} are up already: run %dist_down first"))
            return
        self._pending_ranks[request.id] = {spec.rank for spec in request.ranks}
        for spec in request.ranks:
            rank_log_path(self._directory, spec.rank).unlink(missing_ok=True)
            warm = self._get_warm_process(WarmSpec.for_rank(spec, self._initial[0].preload))
            warm.assigned.append(spec)
            # A send fails when the process has just ended; the request is answered when SIGCHLD reports that.
            with contextlib.suppress(OSError):
                warm.channel.sendall(p.encode(spec))

    def _on_forked(self, warm: WarmProcess, message: p.Forked) -> None:
        warm.assigned = [spec for spec in warm.assigned if spec.rank != message.rank]
        self._ranks[message.pid] = RunningRank(pid=message.pid, rank=message.rank, oom_kills=count_oom_kills())
        self._send(p.RankStarted(rank=message.rank, pid=message.pid))
        for request, ranks in list(self._pending_ranks.items()):
            ranks.discard(message.rank)
            if not ranks:
                del self._pending_ranks[request]
                self._send(p.Reply(id=request))
        if warm.spec.device != CPU:
            warm.started.append(message.rank)
            self._start_warm_process(warm.spec)

    def _signal(self, ranks: list[int], signum: int) -> None:
        for rank in self._ranks.values():
            if rank.rank in ranks:
                with contextlib.suppress(ProcessLookupError):  # the rank has ended and was reaped by its warm process
                    os.kill(rank.pid, signum)

    def _stop_ranks(self, request: p.StopRanks) -> None:
        self._stop_requests.append((request.id, time.monotonic() + request.grace_s))
        self._signal([rank.rank for rank in self._ranks.values()], signal.SIGTERM)
        self._answer_stop_requests()

    def _answer_stop_requests(self) -> None:
        if not self._ranks:
            for request, _ in self._stop_requests:
                self._send(p.Reply(id=request))
            self._stop_requests.clear()

    def _kill_overdue_ranks(self) -> None:
        if self._stop_requests and time.monotonic() >= min(when for _, when in self._stop_requests):
            self._stop_requests = [(request, time.monotonic() + 1.0) for request, _ in self._stop_requests]
            for rank in self._ranks.values():
                kill_group(rank.pid)

    def _on_child_end(self, pid: int, status: int) -> None:
        if pid in self._ranks:
            rank = self._ranks.pop(pid)
            self._warm.pop(pid, None)
            tail = read_log_tail(self._directory, f"rank-{rank.rank:05d}")
            reason = describe_exit(
                status,
                oom_kills=count_oom_kills() - rank.oom_kills,
                kernel_log=kill_in_kernel_log(pid) if status == -signal.SIGKILL else "",
                place=fatal_place(tail) if status < 0 else "",
            )
            self._send(
                p.RankExited(
                    rank=rank.rank,
                    pid=pid,
                    status=status,
                    reason=reason,
                    tail=tail,
                )
            )
            self._answer_stop_requests()
        elif pid in self._warm:
            warm = self._warm.pop(pid)
            self._close_channel(warm)
            tail = read_log_tail(self._directory, warm.log)
            detail = f"the warm process ended ({describe_exit(status)}); its last output:\n{tail}"
            self._fail_assigned_ranks(warm, detail)
            self._send(p.Warmth(**dataclasses.asdict(warm.spec), state="failed", detail=detail))
        elif pid == self._controller:
            self._on_controller_end(status)

    # --- controller

    def _start_controller(self, request: p.StartController) -> None:
        if self._controller:
            self._send(
                p.Reply(id=request.id, error="a controller is running already: use it, or start another rank server")
            )
            return
        reader, writer = os.pipe()
        self._controller_request = request.id
        self._controller = fork(
            lambda: run_controller(request, writer), log=self._directory / "controller.log", keep=[writer]
        )
        os.close(writer)

        def on_ready() -> None:
            line = os.read(reader, 4096)
            self._selector.unregister(reader)
            os.close(reader)
            if line:  # otherwise it has ended, which SIGCHLD reports
                self._controller_request = 0
                self._send(p.decode(line))
                self._send(p.Reply(id=request.id))

        self._watch(reader, on_ready)

    def _on_controller_end(self, status: int) -> None:
        pid, self._controller = self._controller, 0
        reason = describe_exit(status)
        if self._controller_request:
            tail = read_log_tail(self._directory, "controller")
            error = f"the controller did not start ({reason}); its last output:\n{tail}"
            self._send(p.Reply(id=self._controller_request, error=error))
            self._controller_request = 0
        else:  # without a controller the ranks cannot be reached
            self._send(p.ControllerExited(pid=pid, reason=reason))
            self._is_ending = True

    # --- end

    def _wait_ranks(self, grace_s: float) -> None:
        """Waits up to ``grace_s`` seconds for ranks that have received SIGTERM to end."""
        end = time.monotonic() + grace_s
        while self._ranks and time.monotonic() < end:
            for key, _ in self._selector.select(max(0.0, end - time.monotonic())):
                if key.fileobj is not self._owner:
                    key.data()

    def _end_all(self) -> None:
        """Ends the controller, ranks and warm processes, and all their descendants."""
        if self._controller:
            os.kill(self._controller, signal.SIGTERM)  # so that it removes its connection files
            end = time.monotonic() + 0.5
            while self._controller and time.monotonic() < end:
                for pid, wait_status in reap():
                    self._on_child_end(pid, exit_code(wait_status))
                time.sleep(0.01)
            if self._controller:
                kill_group(self._controller)
        end_groups((*self._ranks, *self._warm))
        end_children(2.0)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: accepts the owner's connection on an inherited listening socket and serves it."""
    parser = argparse.ArgumentParser(prog="workbench.cluster.server.rank_server")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--lock-fd", type=int, required=True)
    parser.add_argument("--owner-pid", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--python", default="")
    parser.add_argument("--devices", default="")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.lock_fd, False)  # children that are forked hold it, other programs do not
    os.setsid()  # so that Ctrl-C in the owner's terminal does not reach the ranks
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
    # Imported here once, because every child is forked from this process.
    import ipyparallel.controller.app
    import ipyparallel.controller.heartmonitor
    import ipyparallel.engine.app  # noqa: F401

    devices = [name for name in options.devices.split(",") if name] or [CPU]
    initial = [WarmSpec(device=device, preload=options.preload, python=options.python) for device in devices]
    Server(owner, options.owner_pid, options.directory, initial).run()


if __name__ == "__main__":
    main()

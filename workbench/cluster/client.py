"""The owner's side of a rank server: start it, ask it, hear what happens.

Safe to use from several threads. One thread reads; it ends with the server.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from workbench.cluster.base import protocol as p
from workbench.cluster.base.processes import kill_group
from workbench.core import background
from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework
from workbench.errors import ClusterError

#: a Unix socket's path may have 107 bytes
_LONGEST_SOCKET_PATH = 100
_EVENTS = (p.Warmth, p.ControllerReady, p.ControllerExited, p.RankStarted, p.RankExited)


def preload_of(name: str = DEFAULT_FRAMEWORK) -> str:
    """The preload function of a framework's ranks; ``ConfigError`` when the framework cannot be used."""
    return framework(name).preload


def _private_directory() -> Path:
    """A fresh directory of mode 0700 with a path short enough for a socket."""
    try:
        parent = tempfile.gettempdir()
        directory = Path(tempfile.mkdtemp(prefix="workbench-", dir=parent if len(parent) < 60 else "/tmp"))
    except OSError as error:
        raise ClusterError(f"no temporary directory can be made ({error}): set TMPDIR to one that can") from error
    if len(str(directory)) + 12 > _LONGEST_SOCKET_PATH:
        raise ClusterError(f"{directory} is too long for a socket: set TMPDIR to a shorter path")
    return directory


def _environment() -> dict[str, str]:
    """Of the server and thus of all ranks: one thread until a rank knows its share, and allocators that can fork."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, here])),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        # Freed memory is kept for the next step: giving it back costs a training step thousands of page faults.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    environment.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # figures become outputs
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order in which NVML counts
    return environment


def _copy_outcome(source: Future[None], target: Future[None]) -> None:
    """Have ``target`` end as ``source`` does."""

    def copy(done: Future[None]) -> None:
        error = done.exception()
        if error is not None:
            target.set_exception(error)
        else:
            target.set_result(None)

    source.add_done_callback(copy)


def wait_ready(done: Future[None], timeout_s: float, check: Callable[[], None]) -> None:
    """Wait until a server has done what it was asked; ``check`` raises when waiting is in vain. ``ClusterError`` after
    ``timeout_s`` seconds, or as the server answers."""
    deadline = time.monotonic() + timeout_s
    while True:
        check()
        try:
            done.result(0.1)
            return
        except TimeoutError:
            if done.done():
                raise
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the rank server did not get ready within {timeout_s:.0f} s: run %dist_up again"
                ) from None


def _call(callback: Callable[[Any], None], told: Any) -> None:
    """Call a listener. What it raises is said and stops neither the other listeners nor the reader."""
    try:
        callback(told)
    except Exception as error:
        background.warner("a listener to the rank server failed")(error)


class RankServer:
    """A running rank server that this process owns.

    ``on_event(message)`` callbacks are called in the reading thread and must not block; ``on_end(reason)`` once, when
    the server is gone, asked or not.
    """

    def __init__(self, *, preload: str | None = None, devices: Sequence[str] = (), python: str = "") -> None:
        self.directory = _private_directory()
        self.preload = preload_of() if preload is None else preload
        self.python = python
        self.devices = tuple(devices)
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[None]] = {}
        self._on_event: list[Callable[[Any], None]] = []
        self._on_end: list[Callable[[str], None]] = []
        self._warmth: dict[str, p.Warmth] = {}
        self._rank_pids: set[int] = set()
        self._controller: Future[None] | None = None
        self._ended: str | None = None
        self._asked_to_end = False
        try:
            self._process, self._connection = self._start()
        except OSError as error:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise ClusterError(f"cannot start the rank server: {error}") from error
        self._reader = background.thread(self._read, name="rank-server-reader", failed=self._end_by)
        self._reader.start()

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        path = self.directory / "server.sock"
        with socket.socket(socket.AF_UNIX) as listener, (self.directory / "server.log").open("ab") as log:
            listener.bind(str(path))
            listener.listen(1)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "workbench.cluster.server.rank_server"),
                    *("--listen-fd", str(listener.fileno()), "--owner-pid", str(os.getpid())),
                    *("--directory", str(self.directory), "--preload", self.preload),
                    *("--python", self.python),
                    *("--devices", ",".join(self.devices)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[listener.fileno()],
            )
        path.unlink()  # the one connection exists
        return process, connection

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def profile_dir(self) -> Path:
        """IPython profile of the controller that ``ensure_controller`` starts, and of ranks that use it."""
        return self.directory / "profile"

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._ended is None

    @property
    def warmth(self) -> dict[str, p.Warmth]:
        """Last word about each warm process, by device; by device, preload and Python where those are not the
        server's first ones."""
        return dict(self._warmth)

    def on_event(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback`` with every event of the server from now on."""
        self._on_event.append(callback)

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(reason)`` once the server is gone; at once if it is."""
        with self._lock:
            if self._ended is None:
                self._on_end.append(callback)
                return
        callback(self._ended)

    def forget_listeners(self) -> None:
        """Drop all callbacks, before somebody else uses the server."""
        with self._lock:
            self._on_event, self._on_end = [], []

    # --- requests; each returns a future that holds None, or raises ClusterError

    def ensure_controller(self) -> Future[None]:
        """Start a controller in the private directory, once; done when it listens."""
        with self._lock:
            if self._controller is not None:
                return self._controller
            ready = self._controller = Future()
        try:
            self.profile_dir.mkdir(mode=0o700)
        except OSError as error:  # the server just ended, and its directory with it
            ready.set_exception(ClusterError(f"the rank server is gone: {error}"))
            return ready
        _copy_outcome(self.start_controller(self.profile_dir), ready)
        return ready

    def start_controller(self, profile_dir: Path, cluster_id: str = "", arguments: Iterable[str] = ()) -> Future[None]:
        """Done when the controller listens and its connection files are written."""
        return self._ask(
            p.StartController(
                id=next(self._ids), profile_dir=str(profile_dir), cluster_id=cluster_id, arguments=list(arguments)
            )
        )

    def start_ranks(self, ranks: Sequence[p.RankSpec]) -> Future[None]:
        """Done when every rank's process exists (it registers with the controller a little later)."""
        return self._ask(p.StartRanks(id=next(self._ids), ranks=list(ranks)))

    def signal(self, ranks: Iterable[int], signum: int) -> Future[None]:
        """Send a signal to ranks."""
        return self._ask(p.SignalRanks(id=next(self._ids), ranks=list(ranks), signum=int(signum)))

    def stop_ranks(self, grace_s: float = 0.5) -> Future[None]:
        """Done when no rank is left."""
        return self._ask(p.StopRanks(id=next(self._ids), grace_s=grace_s))

    def close(self, *, grace_s: float = 0.3, timeout_s: float = 2.5) -> None:
        """End ranks, controller and server; returns when they are gone, after ``timeout_s`` at the latest."""
        self._asked_to_end = True
        if self.alive:
            with contextlib.suppress(OSError):  # it just ended by itself
                self._connection.sendall(p.encode(p.Shutdown(grace_s=grace_s)))
        deadline = time.monotonic() + timeout_s
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)  # its children die with it
            self._process.wait(1.0)
        if threading.current_thread() is not self._reader:
            self._reader.join(max(0.2, deadline - time.monotonic()))

    # --- inside

    def _ask(self, request: Any) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(ClusterError(f"the rank server is gone: {self._ended}"))
                return future
            self._waiting[request.id] = future
        with contextlib.suppress(OSError):  # the reader sees the end and fails the future
            self._connection.sendall(p.encode(request))
        return future

    def _read(self) -> None:
        buffer = p.LineBuffer()
        while True:
            try:
                data = self._connection.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            for message in buffer.feed(data):
                self._hear(message)
        self._end()

    def _end_by(self, error: BaseException) -> None:
        """The reader cannot go on: the server is ended, as nobody would hear of its ranks, and all waits fail."""
        background.warner("the rank server is ended, as its answers cannot be read")(error)
        self._process.kill()
        self._end(f"ended, as its answers could not be read: {background.described(error)}")

    def _hear(self, message: Any) -> None:
        if isinstance(message, p.Reply):
            with self._lock:
                future = self._waiting.pop(message.id, None)
            if future is not None and message.error:
                future.set_exception(ClusterError(message.error))
            elif future is not None:
                future.set_result(None)
            return
        match message:
            case p.Warmth():
                is_first = (message.preload, message.python) == (self.preload, self.python)
                kind = message.device if is_first else f"{message.device} {message.preload} {message.python}"
                self._warmth[kind] = message
            case p.RankStarted():
                self._rank_pids.add(message.pid)
            case p.RankExited():
                self._rank_pids.discard(message.pid)
        for callback in list(self._on_event):
            _call(callback, message)

    def _end(self, why: str = "") -> None:
        """The connection ended: so do all waits, and what a killed server left behind."""
        self._connection.close()
        try:
            status = self._process.wait(3.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for pid in self._rank_pids:  # ranks died with it, but not what they had started
            kill_group(pid)
        reason = why or ("closed" if self._asked_to_end else f"ended with {status}{self._last_words()}")
        shutil.rmtree(self.directory, ignore_errors=True)
        with self._lock:
            self._ended = reason
            waiting, self._waiting = self._waiting, {}
            callbacks, self._on_end = self._on_end, []
        for future in waiting.values():
            future.set_exception(ClusterError(f"the rank server is gone: {reason}"))
        for callback in callbacks:
            _call(callback, reason)

    def _last_words(self) -> str:
        try:
            text = (self.directory / "server.log").read_text(errors="replace").strip()
        except OSError:
            return ""
        return f": {text[-2000:]}" if text else ""


_waiting: list[RankServer] = []  # at most one: warm, and nobody's yet
_waiting_lock = threading.Lock()


def warm(*, preload: str | None = None, devices: Sequence[str] | None = None) -> RankServer:
    """Start a rank server for a later ``take``; the one that waits already if there is one. Returns at once."""
    with _waiting_lock:
        if not (_waiting and _waiting[0].alive):
            _waiting[:] = [_new(preload, devices, "")]
        return _waiting[0]


def take(*, preload: str | None = None, devices: Sequence[str] | None = None, python: str = "") -> RankServer:
    """The server that ``warm`` started, now the caller's alone, or a fresh one where that warmed up something else."""
    preload = preload_of() if preload is None else preload
    with _waiting_lock:
        found, _waiting[:] = list(_waiting), []
    for server in found:
        fits = (server.preload, server.python) == (preload, python)
        if server.alive and fits and (devices is None or tuple(devices) == server.devices):
            return server
        server.close()
    return _new(preload, devices, python)


def cool() -> None:
    """End a warm server that nobody took."""
    with _waiting_lock:
        found, _waiting[:] = list(_waiting), []
    for server in found:
        server.close()


def _new(preload: str | None, devices: Sequence[str] | None, python: str) -> RankServer:
    from workbench.cluster.hosts.machine import visible_device_ids

    return RankServer(preload=preload, devices=visible_device_ids() if devices is None else devices, python=python)

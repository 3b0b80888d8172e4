"""Client of a rank server: starts its process, sends requests, and receives events.

The process that starts a rank server owns it. All methods may be called from any thread. One reader thread per server
receives its messages, until the server ends.
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
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from workbench.cluster.base import private_directory
from workbench.cluster.base import protocol as p
from workbench.cluster.base.processes import kill_group
from workbench.core import background
from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework
from workbench.core.live import rank_row
from workbench.errors import ClusterError

#: seconds that the reader thread has to tell what waits that the server has ended, and to remove its directory
_READER_END_S = 10.0


def get_preload(framework_name: str = DEFAULT_FRAMEWORK) -> str:
    """Returns the preload function of a framework, as ``module:function``.

    Raises ``ConfigError`` when the framework is unknown or not installed.
    """
    return framework(framework_name).preload


def _make_private_directory() -> tuple[Path, int]:
    """A directory for a rank server, and the file descriptor that keeps it. Raises ``ClusterError``."""
    try:
        return private_directory.make()
    except OSError as error:
        raise ClusterError(
            f"cannot create a temporary directory ({error}): set TMPDIR to a writable directory"
        ) from error


def _environment() -> dict[str, str]:
    """Returns the environment of the rank server, which all ranks inherit.

    Numerical libraries use one thread until a rank sets its own number. Allocators start no background thread, because
    threads do not survive a fork.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, package_root])),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        # Keep freed memory for the next step: returning it to the kernel costs thousands of page faults per step.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    environment.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # figures become rich displays
    environment.setdefault("TORCH_FR_BUFFER_SIZE", "256")  # torch's record of collectives, which tells why ranks hang
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA numbers GPUs as NVML does
    return environment


def _copy_outcome(source: Future[None], target: Future[None]) -> None:
    """Gives ``target`` the result or the exception of ``source`` when that is done."""

    def copy(done: Future[None]) -> None:
        error = done.exception()
        if error is not None:
            target.set_exception(error)
        else:
            target.set_result(None)

    source.add_done_callback(copy)


def wait_for_reply(done: Future[None], timeout_s: float, check: Callable[[], None] | None = None) -> None:
    """Waits until a rank server has carried out a request.

    ``done``: the future that the request returned. ``check()`` is called repeatedly and raises when a rank has died.
    Raises ``ClusterError`` when the server reports a failure, or after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if check is not None:
            check()
        try:
            done.result(0.1)
            return
        except TimeoutError:
            if done.done():
                raise
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the rank server did not answer a request within {timeout_s:.0f} s: run %dist_up again"
                ) from None


def _call_safely(callback: Callable[[Any], None], argument: Any) -> None:
    """Calls a callback. Prints an exception that it raises, so that other callbacks and the reader thread continue."""
    try:
        callback(argument)
    except Exception as error:
        background.warner("a callback for events of the rank server failed")(error)


class RankServer:
    """A running rank server that this process owns.

    The constructor starts the server with one warm process for each of ``devices`` (without devices: one for the CPU).
    ``preload``: the ``module:function`` that warm processes call (default: that of the default framework; "": none).
    ``python``: the interpreter of the ranks ("": that of the server). Raises ``ClusterError`` when the server cannot be
    started, and in a process that is a rank itself.

    Callbacks run in the reader thread and must not block.
    """

    def __init__(self, *, preload: str | None = None, devices: Sequence[str] = (), python: str = "") -> None:
        if rank_row.current() is not None:
            raise ClusterError(
                "this process is a rank, and a rank starts no ranks: do so in the notebook, without %%dist"
            )
        self.directory, lock = _make_private_directory()
        self.preload = get_preload() if preload is None else preload
        self.python = python
        self.devices = tuple(devices)
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()  # the bytes of two requests must not mix
        self._ids = itertools.count(1)
        self._pending_requests: dict[int, Future[None]] = {}  # by request id
        self._event_callbacks: list[Callable[[Any], None]] = []
        self._end_callbacks: list[Callable[[str], None]] = []
        self._warmth: dict[str, p.Warmth] = {}
        self._rank_pids: set[int] = set()
        self._controller: Future[None] | None = None
        self._end_reason: str | None = None
        self._is_closing = False
        try:
            self._process, self._connection = self._start(lock)
        except OSError as error:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise ClusterError(
                f"cannot start the rank server: {error}; check free memory, processes and file descriptors (ulimit -a)"
            ) from error
        finally:
            os.close(lock)  # the server and its children hold it
        self._reader = background.thread(self._read, name="rank-server-reader", failed=self._handle_reader_failure)
        self._reader.start()

    def _start(self, lock: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
        path = self.directory / "server.sock"
        with socket.socket(socket.AF_UNIX) as listener, (self.directory / "server.log").open("ab") as log:
            listener.bind(str(path))
            listener.listen(1)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "workbench.cluster.server.rank_server"),
                    *("--listen-fd", str(listener.fileno()), "--lock-fd", str(lock), "--owner-pid", str(os.getpid())),
                    *("--directory", str(self.directory), "--preload", self.preload),
                    *("--python", self.python),
                    *("--devices", ",".join(self.devices)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[listener.fileno(), lock],
            )
        path.unlink()  # the owner is connected; nobody else may connect
        return process, connection

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    @property
    def profile_dir(self) -> Path:
        """The IPython profile directory of the controller that ``ensure_controller`` starts, and of its ranks."""
        return self.directory / "profile"

    @property
    def alive(self) -> bool:
        """Whether the server is running."""
        return self._end_reason is None

    @property
    def warmth(self) -> dict[str, p.Warmth]:
        """The last reported state of each warm process.

        Keys are devices; for warm processes with another preload function or interpreter than the server's own they are
        ``"<device> <preload> <python>"``.
        """
        return dict(self._warmth)

    def on_event(self, callback: Callable[[Any], None]) -> None:
        """Calls ``callback(message)`` for every event of the server from now on."""
        self._event_callbacks.append(callback)

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Calls ``callback(reason)`` once, when the server has ended for any reason; immediately if it has ended."""
        with self._lock:
            if self._end_reason is None:
                self._end_callbacks.append(callback)
                return
        callback(self._end_reason)

    def remove_callbacks(self) -> None:
        """Removes all callbacks, so that another session can take over the server."""
        with self._lock:
            self._event_callbacks, self._end_callbacks = [], []

    # --- requests: each returns a future, whose result is None or a ClusterError

    def ensure_controller(self) -> Future[None]:
        """Starts a controller with ``profile_dir``, unless that was done before. Done when the controller listens."""
        with self._lock:
            if self._controller is not None:
                return self._controller
            ready = self._controller = Future()
        try:
            self.profile_dir.mkdir(mode=0o700)
        except OSError as error:  # the server has just ended and removed its directory
            ready.set_exception(ClusterError(f"the rank server has ended: {error}; run %dist_up to start another"))
            return ready
        _copy_outcome(self.start_controller(self.profile_dir), ready)
        return ready

    def start_controller(
        self,
        profile_dir: Path,
        cluster_id: str = "",
        arguments: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Future[None]:
        """Starts a controller. Done when it listens and its connection files are written."""
        return self._send_request(
            p.StartController(
                id=next(self._ids),
                profile_dir=str(profile_dir),
                cluster_id=cluster_id,
                arguments=list(arguments),
                environment=dict(environment or {}),
            )
        )

    def start_ranks(self, ranks: Sequence[p.RankSpec]) -> Future[None]:
        """Starts ranks. Done when the process of every rank exists; the ranks register with the controller later."""
        return self._send_request(p.StartRanks(id=next(self._ids), ranks=list(ranks)))

    def signal(self, ranks: Iterable[int], signum: int) -> Future[None]:
        """Sends a signal to ranks. Done when it is sent."""
        return self._send_request(
            p.SignalRanks(id=next(self._ids), ranks=list(ranks), signum=int(signum), sent=time.time())
        )

    def call(self, ranks: Iterable[int], function: str, arguments: Mapping[str, Any]) -> Future[None]:
        """Calls a function in a thread of ranks, also while they run a cell. Done when they were told."""
        return self._send_request(
            p.CallInRanks(id=next(self._ids), ranks=list(ranks), function=function, arguments=dict(arguments))
        )

    def stop_ranks(self, grace_s: float = 0.5) -> Future[None]:
        """Ends all ranks with SIGTERM, and SIGKILL after ``grace_s`` seconds. Done when no rank is left."""
        return self._send_request(p.StopRanks(id=next(self._ids), grace_s=grace_s))

    def close(self, *, grace_s: float = 0.3, timeout_s: float = 2.5) -> None:
        """Ends the ranks, the controller and the server, and waits until they have ended.

        Ranks get SIGKILL ``grace_s`` seconds after SIGTERM; the server gets SIGKILL after ``timeout_s`` seconds.
        """
        self._is_closing = True
        if self.alive:
            with self._send_lock, contextlib.suppress(OSError):  # the server has just ended by itself
                self._connection.sendall(p.encode(p.Shutdown(grace_s=grace_s)))
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)  # its children receive SIGKILL when it ends
            self._process.wait()
        if threading.current_thread() is not self._reader:
            self._reader.join(_READER_END_S)

    # --- messages

    def _send_request(self, request: Any) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            if self._end_reason is not None:
                future.set_exception(ClusterError(_describe_end(self._end_reason)))
                return future
            self._pending_requests[request.id] = future
        # When the server has ended, the reader thread notices it and sets an exception.
        with self._send_lock, contextlib.suppress(OSError):
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
                self._handle_message(message)
        self._end()

    def _handle_reader_failure(self, error: BaseException) -> None:
        """Ends the server when a message could not be read, because later events would be lost too."""
        background.warner("the rank server was ended because its messages could not be read")(error)
        self._process.kill()
        self._end(f"was ended because its messages could not be read: {background.described(error)}")

    def _handle_message(self, message: Any) -> None:
        if isinstance(message, p.Reply):
            with self._lock:
                future = self._pending_requests.pop(message.id, None)
            if future is not None and message.error:
                future.set_exception(ClusterError(message.error))
            elif future is not None:
                future.set_result(None)
            return
        match message:
            case p.Warmth():
                is_default = (message.preload, message.python) == (self.preload, self.python)
                key = message.device if is_default else f"{message.device} {message.preload} {message.python}"
                self._warmth[key] = message
            case p.RankStarted():
                self._rank_pids.add(message.pid)
            case p.RankExited():
                self._rank_pids.discard(message.pid)
        for callback in list(self._event_callbacks):
            _call_safely(callback, message)

    def _end(self, failure: str = "") -> None:
        """Cleans up after the server, which has ended or is ending: fails pending requests and calls end callbacks."""
        self._connection.close()
        try:
            status = self._process.wait(3.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for pid in self._rank_pids:  # a killed server's ranks die with it, but not the processes that they started
            kill_group(pid)
        reason = failure or (
            "was closed" if self._is_closing else f"ended with exit code {status}{self._read_log_tail()}"
        )
        shutil.rmtree(self.directory, ignore_errors=True)
        with self._lock:
            self._end_reason = reason
            pending, self._pending_requests = self._pending_requests, {}
            callbacks, self._end_callbacks = self._end_callbacks, []
        for future in pending.values():
            future.set_exception(ClusterError(_describe_end(reason)))
        for callback in callbacks:
            _call_safely(callback, reason)

    def _read_log_tail(self) -> str:
        try:
            text = (self.directory / "server.log").read_text(errors="replace").strip()
        except OSError:
            return ""
        return f": {text[-2000:]}" if text else ""


def _describe_end(reason: str) -> str:
    return f"the rank server {reason}; run %dist_up to start another"

"""Delays the collectives of a group of ranks by the time that they would take on another network.

Every function of ``torch.distributed`` that ranks of the group call is over no earlier than its bytes and its messages
have passed the emulated link (``Link``), and no earlier than it really is. Calls go on beside computation where they
are asynchronous, as do those of DistributedDataParallel, whose buckets come here by a communication hook. What goes
around these functions is not delayed: the workbench's own agreements and counts, and functional collectives.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from workbench.core import background
from workbench.core.network import Network
from workbench.engine.network.link import Link
from workbench.engine.watch.torch.collectives import RECORDED_FUNCTIONS, count_bytes, parameter_names
from workbench.errors import ConfigError

#: of messages between two ranks, which data-parallel training does not send
_MESSAGES = frozenset({"send", "recv"})


class _Timer:
    """Calls functions at their moments, in a thread of its own."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ends = False
        self._thread = background.thread(self._run, name="emulated-network", failed=self._failed)
        self._thread.start()

    def at(self, moment_s: float, call: Callable[[], object]) -> None:
        """Call it at that moment of ``time.monotonic``; where there is no thread any more, at once."""
        with self._changed:
            if not self._ends:
                heapq.heappush(self._due, (moment_s, next(self._numbers), call))
                self._changed.notify()
                return
        call()

    def close(self) -> None:
        """Call what is due later now, and end the thread."""
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join()

    def _failed(self, error: BaseException) -> None:
        """Tell it, and let what waits for a moment go on at once."""
        background.warner("the emulated network delays no more messages")(error)
        with self._changed:
            self._ends = True
            due, self._due = self._due, []
        for _, _, call in due:
            call()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ends and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if not self._due:
                    return
                _, _, call = heapq.heappop(self._due)
            call()


class _DelayedWork(dist.Work):
    """An asynchronous collective that is over no earlier than ``over_s``."""

    def __init__(self, work: Any, over_s: float, timer: _Timer) -> None:
        super().__init__()
        self._work = work
        self._over_s = over_s
        self._timer = timer

    def wait(self, timeout: timedelta | None = None) -> bool:
        """As ``Work.wait``."""
        self._work.wait() if timeout is None else self._work.wait(timeout)
        wait_until(self._over_s)
        return True

    def is_completed(self) -> bool:
        """As ``Work.is_completed``."""
        return self._work.is_completed() and time.monotonic() >= self._over_s

    def get_future(self) -> Any:
        """As ``Work.get_future``."""
        delayed: torch.futures.Future[Any] = torch.futures.Future()

        def give(real: torch.futures.Future[Any]) -> None:
            try:
                value = real.value()
            except Exception as error:  # of the collective: whoever waits is told
                delayed.set_exception(error)
            else:
                delayed.set_result(value)

        self._work.get_future().add_done_callback(lambda real: self._timer.at(self._over_s, lambda: give(real)))
        return delayed


def wait_until(moment_s: float) -> None:
    """Sleep until a moment of ``time.monotonic``."""
    left = moment_s - time.monotonic()
    if left > 0:
        time.sleep(left)


class _Emulation:
    """The functions of ``torch.distributed``, wrapped from ``install`` to ``remove``, for the ranks of ``group``."""

    def __init__(self, network: Network, group: dist.ProcessGroup) -> None:
        self._link = Link(network)
        self._group = group
        self._ranks = dist.get_process_group_ranks(group)
        self._timer = _Timer()
        self._installed: dict[str, tuple[Any, Any]] = {}

    def install(self) -> None:
        for name, signature in RECORDED_FUNCTIONS.items():
            original = getattr(dist, name, None)
            if original is not None and signature.kind not in _MESSAGES:
                wrapped = self._wrap(name, original, signature)
                self._installed[name] = (original, wrapped)
                setattr(dist, name, wrapped)

    def remove(self) -> None:
        for name, (original, wrapped) in self._installed.items():
            if getattr(dist, name) is wrapped:
                setattr(dist, name, original)
        self._timer.close()

    def _wrap(self, name: str, original: Callable[..., Any], signature: Any) -> Callable[..., Any]:
        names = parameter_names(getattr(distributed_c10d, name, original))

        @functools.wraps(original)
        def delayed(*args: Any, **kwargs: Any) -> Any:
            def argument(place: int) -> Any:
                return args[place] if place < len(args) else kwargs.get(names[place]) if place < len(names) else None

            if argument(signature.group) not in (None, self._group):
                return original(*args, **kwargs)
            bytes_ = 0 if signature.tensors is None else count_bytes(argument(signature.tensors))
            over_s = self._link.over_at(time.monotonic(), signature.kind, self._ranks, bytes_)
            result = original(*args, **kwargs)
            if isinstance(result, dist.Work):
                return _DelayedWork(result, over_s, self._timer)
            wait_until(over_s)
            return result

        return delayed


@contextmanager
def emulated(network: Network | None, device: str) -> Iterator[None]:
    """While entered, collectives of all ranks take as long as on this network, and no less than they do; None: as long
    as they do. ``ConfigError`` on another ``device`` than "cpu", whose collectives the host does not wait for."""
    if network is None:
        yield
        return
    if device != "cpu":
        raise ConfigError(
            f"--network is emulated where the host waits for messages, on CPU ranks, not on {device}: leave it out",
            field="--network",
        )
    group = dist.group.WORLD
    assert group is not None  # a rank has joined it
    emulation = _Emulation(network, group)
    emulation.install()
    try:
        yield
    finally:
        emulation.remove()

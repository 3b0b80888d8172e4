"""Session: the ranks of a notebook, from the notebook's side.

>>> session = Session.up(4)          # one process per GPU, or per share of the cores
>>> session.execute("print(rank)")   # a cell on every rank
>>> session.down()
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal as signals
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.cluster import client as rank_servers
from workbench.cluster.base import protocol as p
from workbench.cluster.base.rank_kind import RankKind
from workbench.cluster.cells import CellResult, Submission, send
from workbench.cluster.hosts.placement import Placement
from workbench.cluster.job import Job, wait_for_release
from workbench.cluster.roster import Roster
from workbench.cluster.status import RankStatus, measure
from workbench.errors import ClusterError, RanksBusyError, format_ranks

#: seconds for ranks to appear: covers a cold import of a large framework without bytecode on a slow disk
_START_TIMEOUT_S = 180.0


def warm() -> None:
    """Start a rank server, its controller and its warm processes in the background; returns at once."""
    rank_servers.warm().ensure_controller()


def cool() -> None:
    """End what ``warm`` started, if no session took it."""
    rank_servers.cool()


class Session:
    """Ranks that are up. Make one with ``Session.up``; ``Session.current()`` finds it again.

    ``job`` is the training that holds the ranks, or None. Whoever trains sets it and takes it away; while it is set,
    ``execute``, ``submit``, ``push`` and ``pull`` raise ``RanksBusyError`` at once.
    """

    _current: Session | None = None
    _lifecycle = threading.RLock()

    def __init__(self, server: rank_servers.RankServer, kind: RankKind) -> None:
        self.kind = kind
        self.job: Job | None = None
        self.placement = Placement(bindings=())
        self.master_port = 0
        self._port: socket.socket | None = None  # keeps the port free for the ranks
        self._server = server
        self._client: Any = None
        self._engine_info: dict[str, Any] = {}
        self._roster = Roster()
        self._stopping = self._down = False
        self._submissions: list[Submission] = []
        self._on_died: list[Callable[[int, str], None]] = []
        server.on_event(self._hear)
        server.on_end(self._server_ended)

    # --- life

    @classmethod
    def up(
        cls,
        n: int | None = None,
        *,
        master_port: int | None = None,
        devices: Sequence[str] | str | None = None,
        framework: str | None = None,
        python: str | None = None,
        preload: str | None = None,
    ) -> Session:
        """Bring ``n`` ranks up (default: one per GPU, else one per core, 2 to 4) and return the session.

        ``devices``: CUDA_VISIBLE_DEVICES entries to use, or ``"cpu"``. ``framework``, ``python``, ``preload``: as in
        ``RankKind.asked``. Ranks that are up already and fit are kept; others are ended first. Raises ``ConfigError``,
        ``ClusterError`` (port taken, server failed), ``RankDiedError`` (a rank that dies during start, with its last
        output), ``RanksBusyError``; nothing is left behind then.
        """
        from workbench.cluster.hosts.specs import plan_ranks

        placement = plan_ranks(n, devices)
        return cls.start(placement, master_port=master_port, framework=framework, python=python, preload=preload)

    @classmethod
    def start(
        cls,
        placement: Placement,
        *,
        master_port: int | None = None,
        framework: str | None = None,
        python: str | None = None,
        preload: str | None = None,
    ) -> Session:
        """Bring ranks up where ``placement`` says; otherwise as ``up``."""
        from workbench.cluster.hosts.machine import reserve_master_port
        from workbench.cluster.hosts.specs import MASTER_ADDR

        with cls._lifecycle:
            current = cls.current()
            kind = RankKind.asked(current.kind if current is not None else None, framework, python, preload)
            if current is not None:
                if current._fits(placement, master_port, kind):
                    return current
                if not current.dead:
                    current.check_free(range(current.n))
            with contextlib.ExitStack() as undo:
                port = undo.enter_context(reserve_master_port(MASTER_ADDR, master_port))
                server = current._hand_over() if current is not None else None
                session = cls(server or rank_servers.take(preload=kind.preload, python=kind.python), kind)
                undo.callback(session.down)
                session._start_ranks(placement, port)
                undo.pop_all()
            cls._current = session
            return session

    @classmethod
    def current(cls) -> Session | None:
        """The session that is up, or None. A session whose ranks all died is still up, until ``down``."""
        session = cls._current
        return session if session is not None and not session._down else None

    @property
    def n(self) -> int:
        """How many ranks."""
        return len(self.placement.bindings)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know about where the ranks run."""
        return self.placement.warnings

    @property
    def dead(self) -> dict[int, str]:
        """Ranks that ended, and why."""
        return dict(self._roster.dead)

    @property
    def server_pid(self) -> int:
        """Process id of the rank server of this host."""
        return self._server.pid

    @property
    def pids(self) -> dict[int, int]:
        """Process id of each rank."""
        return dict(self._roster.pids)

    def down(self) -> None:
        """End ranks, controller and server, within 3 s; nothing is left. Works however many of them died before."""
        with self._lifecycle:
            if self._down:
                return
            try:
                self._leave()
            finally:  # whatever a listener makes of it
                if self._client is not None:
                    self._client.close(linger=0)
                self._server.close()

    def _hand_over(self) -> rank_servers.RankServer | None:
        """End the ranks and keep what is slow to start, for the next session; None when it cannot be kept."""
        from workbench.cluster.engines import release

        self._stopping = True
        try:
            self._server.stop_ranks().result(2.0)
            release(self._client, self._engine_info, range(self.n), timeout_s=2.0)
        except (ClusterError, TimeoutError):
            self.down()
            return None
        self._server.forget_listeners()
        self._leave()
        self._client.close(linger=0)
        return self._server

    def _leave(self) -> None:
        self._stopping = self._down = True
        if Session._current is self:
            Session._current = None
        self._lose_all("its session ended (by %dist_down, or with its kernel)")
        if self._port is not None:
            self._port.close()

    def _fits(self, placement: Placement, master_port: int | None, kind: RankKind) -> bool:
        same = (placement.bindings, kind) == (self.placement.bindings, self.kind)
        return same and master_port in (None, self.master_port) and not self.dead and self._server.alive

    def _start_ranks(self, placement: Placement, port: socket.socket) -> None:
        from workbench.cluster.engines import connect, connection, wait_heard, wait_registered
        from workbench.cluster.hosts.specs import rank_specs

        self.placement, self._port, self.master_port = placement, port, port.getsockname()[1]
        rank_servers.wait_ready(self._server.ensure_controller(), _START_TIMEOUT_S, self._check_alive)
        self._engine_info = connection(self._server.profile_dir, "engine")
        server, how = self._server, json.dumps(self._engine_info)
        specs = rank_specs(
            placement, self.kind, master_port=self.master_port, profile_dir=server.profile_dir, connection=how
        )
        started = server.start_ranks(specs)
        self._client = connect(connection(self._server.profile_dir, "client"))
        rank_servers.wait_ready(started, _START_TIMEOUT_S, self._check_alive)
        try:
            wait_registered(self._client, self.n, timeout_s=_START_TIMEOUT_S, check=self._check_alive)
            wait_heard(self._client, self.n, timeout_s=_START_TIMEOUT_S, check=self._check_alive)
        except TimeoutError as error:
            raise ClusterError(f"{error}: run %dist_down and try again with fewer ranks") from error

    def _check_alive(self) -> None:
        self._roster.check(range(self.n), "no rank is up now; run %dist_up to try again")

    # --- events of the server (in its reading thread)

    def _hear(self, message: Any) -> None:
        match message:
            case p.RankStarted():
                self._roster.pids[message.rank] = message.pid
            case p.RankExited() if not self._stopping:
                self._lose(message.rank, message.reason, message.tail)
            case p.ControllerExited() if not self._stopping:
                self._lose_all(f"the controller ended ({message.reason}), so no rank can be reached")

    def _server_ended(self, reason: str) -> None:
        if not self._stopping:
            self._lose_all(f"the rank server {reason}, and its ranks with it")

    def _lose_all(self, reason: str) -> None:
        for rank in range(self.n):
            self._lose(rank, reason)

    def _lose(self, rank: int, reason: str, last_output: str = "") -> None:
        if not self._roster.lost(rank, reason, last_output):
            return
        reason = self._roster.dead[rank]
        for submission in list(self._submissions):
            submission.rank_died(rank, reason)
        if self._stopping:
            return
        for callback in list(self._on_died):
            callback(rank, reason)
        if self._server.alive and self._engine_info:
            from workbench.cluster.engines import unregister

            unregister(self._engine_info, [rank])

    def on_rank_died(self, callback: Callable[[int, str], None]) -> None:
        """Call ``callback(rank, reason)`` when a rank ends unasked; in another thread, must not block."""
        self._on_died.append(callback)

    def forget_rank_died(self, callback: Callable[[int, str], None]) -> None:
        """Undo ``on_rank_died``."""
        self._on_died.remove(callback)

    # --- cells

    def execute(self, code: str, ranks: Sequence[int] | None = None, timeout: float | None = None) -> CellResult:
        """Run a cell on ranks (default: all) and wait. Errors of the cell are in the result (``raise_on_error``).

        Raises ``RankDiedError`` as soon as one of them ends, ``RanksBusyError`` while they are busy, ``ClusterError``
        after ``timeout`` seconds (the cell runs on). Ctrl-C interrupts the ranks.
        """
        submission = self.submit(code, ranks)
        self.wait(submission, timeout)
        return submission.result()

    def submit(self, code: str, ranks: Sequence[int] | None = None) -> Submission:
        """Start a cell on ranks (default: all) and return at once."""
        targets = self._targets(ranks)
        self.check_free(targets)
        submission = Submission(code, targets)
        self._submissions = [other for other in self._submissions if not other.done()] + [submission]
        send(self._client, submission)
        for rank in set(targets) & set(self.dead):  # one that died in between
            submission.rank_died(rank, self.dead[rank])
        return submission

    def wait(
        self,
        submission: Submission,
        timeout: float | None = None,
        *,
        while_waiting: Callable[[Submission], None] | None = None,
    ) -> None:
        """Wait for a submission as ``execute`` does; ``while_waiting(submission)`` is called twice a second."""
        deadline = None if timeout is None else time.monotonic() + timeout
        finished = False
        try:
            while not finished and (deadline is None or time.monotonic() < deadline):
                slice_s = 0.5 if deadline is None else min(0.5, max(0.0, deadline - time.monotonic()))
                finished = submission.wait(slice_s)
                if not finished and while_waiting is not None:
                    while_waiting(submission)
        except KeyboardInterrupt:
            self.interrupt(submission.ranks)
            submission.wait(2.0)
            raise
        self._roster.check(submission.dead_ranks(), "its peers may wait for it: run %dist_up to start again")
        if not finished:
            left = [rank for rank in submission.ranks if rank not in submission.ready_ranks()]
            raise ClusterError(
                f"{format_ranks(left)} did not finish within {timeout:g} s and runs on: interrupt it, or wait"
            )

    def push(self, values: Mapping[str, Any], ranks: Sequence[int] | None = None) -> None:
        """Set names in the ranks' namespace."""
        self._transfer(lambda view: view.push(dict(values), block=False), ranks)

    def pull(self, names: str | Sequence[str], ranks: Sequence[int] | None = None) -> dict[int, Any]:
        """Values of a name by rank; of several names, a dict of values by rank. ``CellError`` for a missing name."""
        several = names if isinstance(names, str) else list(names)
        targets, values = self._transfer(lambda view: view.pull(several, block=False), ranks)
        if isinstance(names, str):
            return dict(zip(targets, values, strict=True))
        return {rank: dict(zip(several, row, strict=True)) for rank, row in zip(targets, values, strict=True)}

    def _transfer(self, action: Callable[[Any], Any], ranks: Sequence[int] | None) -> tuple[list[int], Any]:
        from workbench.cluster.engines import value_of

        targets = self._targets(ranks)
        self.check_free(targets)
        answer = action(self._client.direct_view(targets))
        while not answer.wait(0.1):
            self._roster.check(targets, "run %dist_up to start again")
        return targets, value_of(answer)

    def interrupt(self, ranks: Sequence[int] | None = None) -> None:
        """SIGINT to ranks: KeyboardInterrupt in the cell they run, nothing when they run none."""
        self.signal(signals.SIGINT, ranks)

    def signal(self, signum: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to the processes of ranks (default: all that live)."""
        self._server.signal(self._roster.alive(range(self.n) if ranks is None else ranks), signum).result(2.0)

    def end_ranks(self, ranks: Sequence[int], why: str) -> None:
        """SIGKILL to ranks that cannot end by themselves; they are dead then, because of ``why``."""
        self._roster.will_end(ranks, why)
        self.signal(signals.SIGKILL, ranks)

    def _targets(self, ranks: Sequence[int] | None) -> list[int]:
        if self._down:
            raise ClusterError("these ranks were taken down: run %dist_up")
        targets = list(range(self.n)) if ranks is None else sorted(set(ranks))
        outside = [rank for rank in targets if not 0 <= rank < self.n]
        if outside:
            raise ClusterError(f"{format_ranks(outside)}: {self.n} ranks are up, 0 to {self.n - 1}")
        self._roster.check(targets, "run %dist_up to start again, or name other ranks")
        return targets

    @property
    def busy(self) -> str | None:
        """The name of the run that trains on the ranks, or None."""
        return None if self.job is None else self.job.name

    def check_free(self, ranks: Sequence[int]) -> None:
        """``RanksBusyError`` while a run trains (one that ended is waited for), or a rank of these runs a cell."""
        wait_for_release(lambda: self.job)
        if self.busy is not None:
            raise RanksBusyError(
                f"run {self.busy!r} is training on these ranks: wait for it (run.wait()), or stop it (%dist_stop) first"
            )
        running = sorted(self._ranks_with_cells() & set(ranks))
        if running:
            raise RanksBusyError(
                f"{format_ranks(running)} still runs an earlier cell: wait, interrupt it (session.interrupt()), "
                "or start again with %dist_down and %dist_up"
            )

    def _ranks_with_cells(self) -> set[int]:
        return {rank for each in list(self._submissions) for rank in each.ranks if rank not in each.ready_ranks()}

    # --- status

    def status(self) -> list[RankStatus]:
        """Where each rank runs and what it does. Never asks the ranks, so it answers while they train."""
        running, host, found = self._ranks_with_cells(), socket.gethostname(), []
        job = self.job
        for binding in self.placement.bindings:
            rank = binding.rank
            state = "training" if job is not None else "running cell" if rank in running else "idle"
            step = job.step_of(rank) if job is not None else None
            pid, dead = self.pids.get(rank, 0), self.dead.get(rank)
            found.append(measure(binding, pid=pid, host=host, state=state, step=step, dead=dead))
        return found


@atexit.register
def _end_all() -> None:
    session = Session.current()
    if session is not None:
        session.down()
    cool()


os.register_at_fork(after_in_child=lambda: atexit.unregister(_end_all))  # the ranks are not the child's

"""Session: the ranks that a notebook has started, and the connection to them.

>>> session = Session.up(4)          # 4 ranks, each bound to a GPU or to a share of the CPU cores
>>> session.execute("print(1)")      # runs a cell on every rank
>>> session.down()
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal as signals
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from workbench.cluster.base import protocol as p
from workbench.cluster.base.interrupts import deferred_interrupt
from workbench.cluster.base.rank_kind import RankKind
from workbench.cluster.cell_runner import CellRunner
from workbench.cluster.cells import CellResult, Submission
from workbench.cluster.client import RankServer, wait_for_reply
from workbench.cluster.connection import Connection
from workbench.cluster.debugger.dialogue import in_debugger
from workbench.cluster.hosts.placement import Placement
from workbench.cluster.job import Job
from workbench.cluster.renewal import Renewal, plan_renewal, rebinding_code
from workbench.cluster.roster import Roster
from workbench.cluster.spare import close_spare, take_server
from workbench.cluster.status import RankStatus, measure_ranks
from workbench.errors import ClusterError, format_ranks

#: seconds in which a rank that was killed has ended, and a rank server has answered
_END_TIMEOUT_S = 30.0
#: seconds that ranks have to answer an interrupt before a second one ends those that run
_ANSWER_S = 0.5


class Session:
    """The ranks of a notebook. ``Session.up`` starts them; ``Session.current()`` returns the session that is up.

    ``renewal``: which ranks the last ``up`` kept, replaced and added (None: all are as they were).
    """

    _current: Session | None = None
    _lifecycle = threading.RLock()

    def __init__(self, server: RankServer, kind: RankKind) -> None:
        self.kind = kind
        self.renewal: Renewal | None = None
        self.placement = Placement(bindings=())
        self.master_port = 0
        self._port: socket.socket | None = None  # reserves MASTER_PORT for the ranks
        self._server = server
        self._connection = Connection(server, self._check_alive)
        self._roster = Roster()
        self._cells = CellRunner(
            self._connection,
            self._roster,
            server.directory,
            signal=self.interrupt,
            call=self.call,
            on_interrupt=self.interrupt_cell,
            end_stuck=self._end_stuck,
        )
        self._stopping = self._down = False
        self._death_callbacks: list[Callable[[int, str], None]] = []
        server.on_event(self._handle_event)
        server.on_end(self._handle_server_end)

    # --- start and end

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
        """Starts ``n`` ranks and returns the session. Default: one per GPU, or one per physical core (2 to 4).

        ``devices``: the CUDA_VISIBLE_DEVICES entries to use, or ``"cpu"``. ``master_port``: MASTER_PORT of the ranks
        (default: a free port). ``framework``: the framework that the ranks train with. ``python``: the interpreter
        that they run on. ``preload``: a ``module:function`` to call before the ranks start, in place of the
        framework's. Of these three, an omitted one keeps its value of the current session; without a session it is the
        default framework, the kernel's interpreter, and the preload function of the framework.

        If the current session already matches the request, it is returned. If it does but for ranks that died or are
        missing, these are started and the others keep their variables (``renewal`` says which). Otherwise its ranks
        are ended first.

        Raises ``ConfigError`` for an invalid argument, ``ClusterError`` when the port is taken or the rank server
        fails, ``RankDiedError`` (with the last output) when a rank ends during the start, and ``RanksBusyError`` when
        the current ranks are in use. After an error no new rank is left running.
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
        """Starts ranks with the bindings of ``placement``. Other arguments and errors: see ``up``."""
        from workbench.cluster.hosts.machine import reserve_master_port
        from workbench.cluster.hosts.specs import MASTER_ADDR

        with cls._lifecycle:
            current = cls.current()
            kind = RankKind.resolve(current.kind if current is not None else None, framework, python, preload)
            if current is not None:
                if current._matches(placement, master_port, kind):
                    current.renewal = None
                    return current
                renewal = current._plan_renewal(placement, master_port, kind)
                if renewal is not None:
                    current._renew(placement, renewal)
                    return current
                if not current.dead:
                    current.check_free(range(current.n))
            with contextlib.ExitStack() as undo:
                if current is not None and current._port is not None and current.master_port == master_port:
                    port = undo.enter_context(current._port.dup())  # the ranks that end now may listen on it
                else:
                    port = undo.enter_context(reserve_master_port(MASTER_ADDR, master_port))
                server = current._end_ranks_only() if current is not None else None
                session = cls(server or take_server(preload=kind.preload, python=kind.python), kind)
                undo.callback(session.down)
                session._start_ranks(placement, port)
                undo.pop_all()
            cls._current = session
            return session

    @classmethod
    def current(cls) -> Session | None:
        """Returns the session that is up, or None. It stays up until ``down``, even when all its ranks have died."""
        session = cls._current
        return session if session is not None and not session._down else None

    @property
    def job(self) -> Job | None:
        """The training run that uses the ranks, or None.

        The code that starts a run sets it and resets it to None when the run has ended. While it is set, ``execute``,
        ``submit``, ``push`` and ``pull`` raise ``RanksBusyError``.
        """
        return self._cells.job

    @job.setter
    def job(self, job: Job | None) -> None:
        self._cells.job = job

    @property
    def is_down(self) -> bool:
        """Whether the session has ended, so that its ranks have too."""
        return self._down

    @property
    def n(self) -> int:
        """The number of ranks."""
        return len(self.placement.bindings)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the placement of the ranks: shared GPUs, or more ranks than cores."""
        return self.placement.warnings

    @property
    def dead(self) -> dict[int, str]:
        """The ranks whose process has ended, with the reason for each."""
        return dict(self._roster.dead)

    @property
    def server_pid(self) -> int:
        """The process id of the rank server."""
        return self._server.pid

    @property
    def directory(self) -> Path:
        """The directory of the rank server, with the rows of its ranks (``core.live``)."""
        return self._server.directory

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each rank."""
        return dict(self._roster.pids)

    def down(self) -> None:
        """Ends the ranks, the controller and the rank server within 3 s. Also works when some of them have died."""
        with self._lifecycle:
            if self._down:
                return
            try:
                self._mark_down()
            finally:  # also when a callback raises
                self._connection.close()
                self._server.close()

    def _end_ranks_only(self) -> RankServer | None:
        """Ends the ranks and returns the rank server for reuse. If that fails, ends the server too and returns None."""
        self._stopping = True
        try:
            self._server.stop_ranks().result(_END_TIMEOUT_S)
            self._connection.unregister_and_wait(range(self.n), timeout_s=_END_TIMEOUT_S)
        except (ClusterError, TimeoutError):
            self.down()
            return None
        self._server.remove_callbacks()
        self._mark_down()
        self._connection.close()
        return self._server

    def _mark_down(self) -> None:
        self._stopping = self._down = True
        if Session._current is self:
            Session._current = None
        self._mark_all_dead("its session ended, by %dist_down or with the kernel")
        if self._port is not None:
            self._port.close()

    def _matches(self, placement: Placement, master_port: int | None, kind: RankKind) -> bool:
        same = (placement.bindings, kind) == (self.placement.bindings, self.kind)
        return same and master_port in (None, self.master_port) and not self.dead and self._server.alive

    def _start_ranks(self, placement: Placement, port: socket.socket) -> None:
        self.placement, self._port, self.master_port = placement, port, port.getsockname()[1]
        self._connection.open(self._make_specs())

    def _make_specs(self) -> Callable[..., Sequence[p.RankSpec]]:
        """Returns the function that makes the specs of all ranks, once the connection to the controller is known."""
        from workbench.cluster.hosts.specs import rank_specs

        profile_dir = self._server.profile_dir
        return partial(rank_specs, self.placement, self.kind, master_port=self.master_port, profile_dir=profile_dir)

    def _plan_renewal(self, placement: Placement, master_port: int | None, kind: RankKind) -> Renewal | None:
        """Returns which ranks can be kept, or None when all have to be restarted."""
        if (
            kind != self.kind
            or kind.joins_once
            or master_port not in (None, self.master_port)
            or not self._server.alive
        ):
            return None
        return plan_renewal(self.placement, placement, self.dead)

    def _renew(self, placement: Placement, renewal: Renewal) -> None:
        """Starts the ranks that are missing, and tells the others. After an error the session is down."""
        self.free(renewal.kept)
        renewal = renewal.without(self.dead)
        self._roster.forget_deaths(renewal.replaced)
        self.placement, self.renewal = placement, renewal
        self._cells.leave_group()
        try:
            self._connection.add(self._make_specs(), [*renewal.replaced, *renewal.added])
            if renewal.kept:
                self._cells.run_silently(Submission(rebinding_code(placement, self.master_port), renewal.kept))
        except BaseException:
            self.down()
            raise

    def free(self, ranks: Sequence[int]) -> None:
        """Ends cells of which a rank has died, and ranks that still run them after that. Raises ``RanksBusyError`` when
        ``ranks`` are in use by others."""
        for submission in self._cells.unfinished():
            if submission.dead_ranks():
                try:
                    self._cells.interrupt(submission)
                    self._end_and_wait(self._cells.stuck_ranks(submission), "ended by an interrupt")
                    submission.wait_until_finished(_END_TIMEOUT_S)
                except ClusterError:
                    if self._server.alive:
                        raise
                    submission.wait_until_finished(_END_TIMEOUT_S)  # it has ended, and all ranks with it
        self.check_free(ranks)

    def restart_ranks(self, ranks: Sequence[int], why: str = "ended to be started anew") -> None:
        """Kills ranks and starts them anew, without their variables; the others keep theirs, unless ranks of their kind
        can meet only once: then all are started anew.

        Raises ``RanksBusyError`` when one of the others is in use.
        """
        if self.kind.joins_once:
            self.check_free([rank for rank in range(self.n) if rank not in ranks and rank not in self.dead])
            ranks = range(self.n)
        self._end_and_wait(ranks, why)
        with Session._lifecycle:
            if not self._server.alive:
                raise ClusterError("no rank is left: run %dist_up to start them again")
            self._renew(self.placement, Renewal(kept=tuple(range(self.n)), replaced=(), added=()))

    def _end_and_wait(self, ranks: Sequence[int], why: str) -> None:
        self.end_ranks(ranks, why)
        deadline = time.monotonic() + _END_TIMEOUT_S
        while not self.dead.keys() >= set(ranks):
            if time.monotonic() > deadline:
                raise ClusterError(f"{format_ranks(ranks)} did not end: run %dist_down, then %dist_up")
            time.sleep(0.005)

    def _check_alive(self) -> None:
        self._roster.raise_if_dead(range(self.n), "the other ranks were stopped too; run %dist_up to try again")

    # --- events of the rank server (called in its reader thread)

    def _handle_event(self, message: Any) -> None:
        match message:
            case p.RankStarted():
                self._roster.pids[message.rank] = message.pid
            case p.RankExited() if not self._stopping:
                self._mark_dead(message.rank, message.reason, message.tail)
            case p.ControllerExited() if not self._stopping:
                self._mark_all_dead(f"the controller ended ({message.reason}), so the ranks cannot be reached")

    def _handle_server_end(self, reason: str) -> None:
        if not self._stopping:
            self._mark_all_dead(f"the rank server {reason}; its ranks ended with it")

    def _mark_all_dead(self, reason: str) -> None:
        for rank in range(self.n):
            self._mark_dead(rank, reason)

    def _mark_dead(self, rank: int, reason: str, last_output: str = "") -> None:
        if not self._roster.mark_dead(rank, reason, last_output):
            return
        reason = self._roster.dead[rank]
        self._cells.mark_dead(rank, reason)
        if self._stopping:
            return
        for callback in list(self._death_callbacks):
            callback(rank, reason)
        if self._server.alive and self._connection.is_known:
            self._connection.unregister([rank])

    def on_rank_died(self, callback: Callable[[int, str], None]) -> None:
        """Registers ``callback(rank, reason)`` for ranks that end unexpectedly. It runs in another thread and must not
        block."""
        self._death_callbacks.append(callback)

    def forget_rank_died(self, callback: Callable[[int, str], None]) -> None:
        """Removes a callback that ``on_rank_died`` registered."""
        self._death_callbacks.remove(callback)

    # --- cells

    def execute(self, code: str, ranks: Sequence[int] | None = None, timeout: float | None = None) -> CellResult:
        """Runs a cell on ranks (default: all) and waits for it. The result holds output and errors of the cell.

        To raise an error of the cell, call ``raise_on_error()`` of the result. Raises ``RankDiedError`` as soon as one
        of the ranks ends, ``RanksBusyError`` when they are in use, and ``ClusterError`` after ``timeout`` seconds (the
        cell keeps running). Ctrl-C interrupts the cell on the ranks.
        """
        submission = self.submit(code, ranks)
        self.wait(submission, timeout)
        return submission.result()

    def submit(self, code: str, ranks: Sequence[int] | None = None, *, in_group: bool = True) -> Submission:
        """Starts a cell on ranks (default: all) without waiting. Raises ``RankDiedError`` and ``RanksBusyError``.

        ``in_group``: all ranks are put into one process group of torch first, unless they are in one, or some of them
        are busy or dead. Otherwise the cell leaves that group, as a training does.
        """
        return self._cells.submit(code, self._check_targets(ranks), ranks=self.n, in_group=in_group)

    def ask(self, code: str, ranks: Sequence[int] | None = None, timeout: float | None = None) -> CellResult:
        """As ``execute``, for code that is none of the user's: ranks keep their directory, modules and group."""
        targets = self._check_targets(ranks)
        self.check_free(targets)
        submission = Submission(code, targets)
        self._cells.run_silently(submission, timeout)
        return submission.result()

    def wait(
        self,
        submission: Submission,
        timeout: float | None = None,
        *,
        while_waiting: Callable[[Submission], None] | None = None,
    ) -> None:
        """Waits for a submission; ``while_waiting(submission)`` is called every 0.5 s. Errors: see ``execute``.

        In the main thread, asks for commands when ranks stop in the debugger; that time does not count.
        """
        self._cells.wait(submission, timeout, while_waiting=while_waiting)

    def interrupt_cell(self, submission: Submission) -> None:
        """Interrupts a cell and breaks the collectives that its ranks wait in.

        Ranks that still run it after 3 s, or when Ctrl-C is pressed again, are ended and started anew, without their
        variables; the others keep theirs.
        """
        try:
            self._cells.interrupt(submission)
        except KeyboardInterrupt:
            submission.wait_until_finished(_ANSWER_S)  # some may be about to end
        self._end_stuck(self._cells.stuck_ranks(submission))
        submission.wait_until_finished(_END_TIMEOUT_S)

    def _end_stuck(self, ranks: Sequence[int]) -> None:
        """Kills ranks that did not end after an interrupt, and starts them anew."""
        if ranks:
            print(f"interrupt: {format_ranks(ranks)} ended and started anew", file=sys.stderr, flush=True)
            with deferred_interrupt():  # one more press would end all ranks
                self.restart_ranks(ranks, "ended by an interrupt")
                print(f"interrupt: {self.renewal}", file=sys.stderr, flush=True)

    def interrupt_job(self) -> None:
        """Interrupts the training, which is not started again: SIGINT to its ranks, then their collectives are broken.

        Ranks that still train after 3 s, or when Ctrl-C is pressed again, are killed, but for those that write down how
        they failed: what watches the training ends these.
        """
        if self.job is None:
            return
        self.job.give_up()
        for submission in self._cells.unfinished():
            try:
                self._cells.interrupt(submission)
                running = self._cells.stuck_ranks(submission)
            except KeyboardInterrupt:
                running = submission.running_ranks()
            if running:
                print(f"interrupt: {format_ranks(running)} ended", file=sys.stderr, flush=True)
                self.end_ranks(running, "ended by an interrupt")

    def push(self, values: Mapping[str, Any], ranks: Sequence[int] | None = None) -> None:
        """Sets variables in the namespace of ranks (default: all)."""
        self._cells.transfer(lambda view: view.push(dict(values), block=False), self._check_targets(ranks))

    def pull(self, names: str | Sequence[str], ranks: Sequence[int] | None = None) -> dict[int, Any]:
        """Returns the value of a variable by rank; for a sequence of names, a dict from name to value by rank.

        Raises ``CellError`` when a rank has no variable of that name.
        """
        several, targets = names if isinstance(names, str) else list(names), self._check_targets(ranks)
        values = self._cells.transfer(lambda view: view.pull(several, block=False), targets)
        if isinstance(names, str):
            return dict(zip(targets, values, strict=True))
        return {rank: dict(zip(several, row, strict=True)) for rank, row in zip(targets, values, strict=True)}

    def interrupt(self, ranks: Sequence[int] | None = None) -> None:
        """Interrupts the cell that ranks run with SIGINT (KeyboardInterrupt). Idle ranks ignore it."""
        self.signal(signals.SIGINT, ranks)

    def signal(self, signum: int, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to the processes of ranks (default: all that are alive)."""
        alive = self._roster.select_alive(range(self.n) if ranks is None else ranks)
        wait_for_reply(self._server.signal(alive, signum), _END_TIMEOUT_S)

    def call(self, ranks: Sequence[int], function: str, arguments: dict[str, Any]) -> None:
        """Calls a function (``module:name``) in a thread of ranks, also while they run a cell.

        ``arguments``: keyword arguments that JSON takes. Returns when the ranks were told; those that have not imported
        the module ignore it.
        """
        wait_for_reply(self._server.call(self._roster.select_alive(ranks), function, arguments), _END_TIMEOUT_S)

    def release(self, submission: Submission, failed: dict[int, str]) -> None:
        """Breaks the collectives in which ranks of a training wait for one of ``failed`` (rank -> what happened)."""
        self._cells.release(submission, failed)

    def end_ranks(self, ranks: Sequence[int], why: str) -> None:
        """Kills ranks with SIGKILL. ``why`` is recorded as the reason of their death."""
        self._roster.announce_end(ranks, why)
        self.signal(signals.SIGKILL, ranks)

    def _check_targets(self, ranks: Sequence[int] | None) -> list[int]:
        if self._down:
            raise ClusterError(
                "this session has ended (by %dist_down, or replaced by another): run %dist_up, or use Session.current()"
            )
        targets = list(range(self.n)) if ranks is None else sorted(set(ranks))
        outside = [rank for rank in targets if not 0 <= rank < self.n]
        if outside:
            raise ClusterError(f"{format_ranks(outside)}: {self.n} ranks are up; use ranks 0 to {self.n - 1}")
        self._roster.raise_if_dead(targets, "run %dist_up to restart the ranks, or choose other ranks")
        return targets

    def is_busy(self) -> bool:
        """Whether a run is training on the ranks, or one of them is running a cell."""
        return self.job is not None or bool(self._cells.running_ranks())

    @property
    def busy(self) -> str | None:
        """The name of the run that is training on the ranks, or None."""
        return None if self.job is None else self.job.name

    def check_free(self, ranks: Sequence[int]) -> None:
        """Raises ``RanksBusyError`` while a run is training, or one of ``ranks`` is running a cell or is stopped.

        When the run has just ended, waits until it has released the ranks.
        """
        self._cells.check_free(ranks)

    # --- status

    def status(self) -> list[RankStatus]:
        """Returns the status of each rank: where it runs and what it does. Does not query the ranks, so it also works
        while they train."""
        stopped, running = in_debugger(self.directory, range(self.n)), self._cells.running_ranks()
        state_of = partial(self._cells.state_of, stopped=stopped, running=running)
        return measure_ranks(self.placement.bindings, pids=self.pids, dead=self.dead, state_of=state_of)


@atexit.register
def _end_at_exit() -> None:
    session = Session.current()
    if session is not None:
        session.down()
    close_spare()


os.register_at_fork(after_in_child=lambda: atexit.unregister(_end_at_exit))  # a forked child does not own the ranks

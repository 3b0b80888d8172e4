"""A run: its directory, what it reports, and its verbs. Any process can open one: ``Run("runs/...")``."""

from __future__ import annotations

import getpass
import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import run_directory
from workbench.config import ParallelPlan, TrainSpec
from workbench.errors import RunError, format_ranks
from workbench.rank_log import RankLogWriter
from workbench.records import SESSION_RANK, Command
from workbench.run_directory import CONTROL_FILE, OUTPUT_FILE
from workbench.telemetry.store import Columns, Store

if TYPE_CHECKING:
    import pandas as pd

#: states after which nothing more happens; "lost" is a run whose owner died before it ended
ENDED = ("finished", "stopped", "failed", "lost")


class Run:
    """One training run. ``name`` is a run directory, a run's name, or None for the newest run.

    Raises ``RunDirectoryError`` when there is no such run, ``SchemaError`` when a newer version wrote it.
    """

    def __init__(self, name: str | Path | None = None) -> None:
        self.path = run_directory.find(name)
        self.store = Store(self.path)
        self._lock = threading.RLock()
        self._handle: _Live | None = None

    @property
    def spec(self) -> TrainSpec:
        return self.store.spec

    @property
    def plan(self) -> ParallelPlan:
        return self.spec.plan

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def status(self) -> str:
        """``starting``, ``running``, ``finished``, ``stopped``, ``failed`` or ``lost``."""
        released = self._handle is not None and self._handle.released.is_set()  # asked before the logs are read
        state = state_of(self._events(), self.plan.ranks)
        if state in ENDED:
            return state
        if released:
            return "failed"  # the ranks are free again and could not say how it ended
        if self._handle is None and not run_directory.owner_is_alive(self.path):
            return "lost"
        return state

    @property
    def step(self) -> int:
        """The last step that any rank finished; 0 before the first."""
        with self._lock:
            self.store.refresh()
            steps = self.store.table("steps")["step"]
        return int(steps.max()) if steps.size else 0

    def step_of(self, rank: int) -> int | None:
        """The last step that one rank finished; None before its first."""
        steps = self._table("steps")
        own = steps["step"][steps["rank"] == rank]
        return int(own[-1]) if own.size else None

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until the run ended; returns the run.

        Raises ``TimeoutError`` after ``timeout`` seconds, and ``RunError`` when the run failed (its message and
        traceback are those of the first rank that failed).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended():
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {self.name!r} is still {self.status} after {timeout} s, at step {self.step}")
            time.sleep(0.05)
        self.raise_if_failed()
        return self

    def ended(self) -> bool:
        """Whether the run is over and its ranks are free again."""
        return self.status in ENDED and (self._handle is None or self._handle.released.is_set())

    def raise_if_failed(self) -> None:
        """``RunError`` when the run failed or was lost."""
        status = self.status
        if status == "failed":
            ranks, message, trace = failure_of(self._events())
            if not ranks and self._handle is not None and self._handle.errors:
                ranks, message = list(self._handle.errors), next(iter(self._handle.errors.values()))
            where = format_ranks(ranks) if ranks else "a rank"
            raise RunError(f"run {self.name!r} failed at step {self.step} on {where}: {message}", traceback=trace)
        if status == "lost":
            raise RunError(f"run {self.name!r} was lost at step {self.step}: the process that started it has ended")

    def stop(self) -> None:
        """Ask all ranks to stop after the step they are in. ``RunError`` when the run has ended already."""
        status = self.status
        if status in ENDED:
            raise RunError(f"run {self.name!r} is {status}: there is nothing to stop")
        command = Command(time=time.time(), name="stop", who=getpass.getuser())
        descriptor = os.open(self.path / CONTROL_FILE, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, command.to_line().encode())
        finally:
            os.close(descriptor)

    def metrics(self, *, per_rank: bool = False) -> pd.DataFrame:
        """One row per step that all ranks finished: step, loss, lr, grad_norm, tps, step_time_ms and more.

        Values are global (``telemetry.derive.global_metrics``); ``tps`` is tokens per second per device. With
        ``per_rank`` a column ``rank`` is added and each step has a row per rank as well, with that rank's own loss, lr,
        step_time_ms, data_wait_ms and tps; the global rows have rank -1.
        """
        from workbench.telemetry.derive import metrics_frame

        return metrics_frame(self._table("steps"), self.plan.mesh, per_rank=per_rank)

    def devices(self) -> pd.DataFrame:
        """Device samples: time, rank, cpu_percent, rss_bytes, GPU columns, network and disk bytes, phase, step."""
        import pandas as pd

        return pd.DataFrame(self._table("devices"))

    def gradients(self) -> pd.DataFrame:
        """Gradient statistics per step, rank, layer and scope: see ``telemetry.gradients.combine``."""
        from workbench.telemetry.gradients import combine

        return combine(self._table("gradients"), self.plan.mesh)

    def events(self) -> pd.DataFrame:
        """Events: time, step, rank, kind, name, value, old_value (values decoded)."""
        import pandas as pd

        frame = pd.DataFrame(self._events())
        for column in ("value", "old_value"):
            frame[column] = [json.loads(text) for text in frame[column]]
        return frame.sort_values("time", kind="stable", ignore_index=True)

    def samples(self) -> list[tuple[int, str]]:
        """What the model wrote at evaluations: (step, text)."""
        events = self._events()
        chosen = (events["kind"] == "sample").nonzero()[0]
        return [(int(events["step"][i]), json.loads(events["value"][i])) for i in chosen]

    def output(self, rank: int = 0) -> str:
        """What a rank printed while it trained."""
        file = self.path / f"rank-{rank:05d}" / OUTPUT_FILE
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def report(self, out: str | Path | None = None, *, light: bool = False, pdf: bool = False) -> Path:
        """Write the run's report (default: ``report.html`` in its directory) and return its path: see ``render``."""
        from workbench.report import render

        return render(self.path, out, light=light, pdf=pdf)

    def __repr__(self) -> str:
        return f"<Run {self.name!r} {self.status} at step {self.step}/{self.spec.steps}: {self.plan.describe()}>"

    def _table(self, table: str) -> Columns:
        with self._lock:
            self.store.refresh()
            return self.store.table(table)

    def _events(self) -> Columns:
        return self._table("events")

    def attach(self) -> None:
        """Called by the session that starts the run, before any rank hears of it."""
        self._handle = _Live(self.path)

    def rank_died(self, rank: int, reason: str) -> None:
        """Called by the session: a rank ended while this run needed it. Written where every reader sees it."""
        if self._handle is not None and rank < self.plan.ranks:
            self._handle.rank_died(rank, reason)

    def detach(self, errors: dict[int, str]) -> None:
        """Called by the session when the ranks are free or gone; ``errors``: what ranks could not log."""
        if self._handle is not None:
            self._handle.errors = errors
            self._handle.log.close()
            self._handle.released.set()


class _Live:
    """What only the session that started a run has. ``released`` is set when its ranks are free again."""

    def __init__(self, path: Path) -> None:
        self.log = RankLogWriter(path, SESSION_RANK)
        self.released = threading.Event()
        self.errors: dict[int, str] = {}
        self._dead: set[int] = set()

    def rank_died(self, rank: int, reason: str) -> None:
        if rank not in self._dead:
            self._dead.add(rank)
            self.log.event("rank", "died", {"rank": rank, "reason": reason})
            self.log.flush()


def state_of(events: Columns, ranks: int) -> str:
    """The state of a run from its events: pure."""
    died = (events["kind"] == "rank") & (events["name"] == "died")
    is_state = events["kind"] == "state"
    latest: dict[int, str] = {}
    for rank, name in zip(events["rank"][is_state], events["name"][is_state], strict=True):
        latest[int(rank)] = name
    names = set(latest.values())
    if "failed" in names:
        return "failed"
    over = [rank for rank, name in latest.items() if name in ENDED]
    if len(over) == ranks:
        return "stopped" if "stopped" in names else "finished"
    if died.any():
        return "failed"
    return "running" if names - {"starting"} else "starting"


def failure_of(events: Columns) -> tuple[list[int], str, str]:
    """Ranks that failed first, with what, and the traceback: pure.

    A rank that died explains what its peers then saw; otherwise the earliest failure that is not about a peer.
    """
    for i in ((events["kind"] == "rank") & (events["name"] == "died")).nonzero()[0]:
        value = json.loads(events["value"][i])
        return [value["rank"]], value["reason"], ""
    failures = [
        (float(events["time"][i]), int(events["rank"][i]), json.loads(events["value"][i]))
        for i in ((events["kind"] == "state") & (events["name"] == "failed")).nonzero()[0]
    ]
    if not failures:
        return [], "no rank said why", ""
    failures.sort(key=lambda failure: (failure[2]["peer"], failure[0]))
    first: dict[str, Any] = failures[0][2]
    same = [
        rank for _, rank, value in failures if (value["ename"], value["evalue"]) == (first["ename"], first["evalue"])
    ]
    return same, f"{first['ename']}: {first['evalue']}", first["traceback"]

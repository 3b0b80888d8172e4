"""A run: its directory, what it reports, and its verbs. Any process can open one: ``Run("runs/...")``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.records import SESSION_RANK, Event
from workbench.errors import RunError, format_ranks
from workbench.events.outcome import FirstFailure, Outcome, failure, failure_of
from workbench.run.verbs import Verbs
from workbench.rundir import directory as run_directory
from workbench.rundir import state
from workbench.rundir.directory import OUTPUT_FILE
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.derive import with_rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from workbench.run.replay import Replay
    from workbench.telemetry.verdict import Verdict


class Run(Verbs):
    """One training run. ``name`` is a run directory, a run's name, or None for the newest run.

    Raises ``RunDirectoryError`` when there is no such run, ``SchemaError`` when a newer version wrote it.
    """

    def __init__(self, name: str | Path | None = None) -> None:
        self.path = state.find(name)
        self.store = Store(self.path)
        self._lock = threading.RLock()
        self._handle: _Live | None = None

    @property
    def spec(self) -> TrainSpec:
        """What was asked: the spec in its directory."""
        return self.store.spec

    @property
    def plan(self) -> ParallelPlan:
        """How it is spread over ranks."""
        return self.spec.plan

    @property
    def name(self) -> str:
        """Its name, as given with ``--name``."""
        return self.spec.name

    @property
    def status(self) -> str:
        """``starting``, ``running``, ``paused``, ``finished``, ``stopped``, ``failed`` or ``lost``."""
        released = self._handle is not None and self._handle.released.is_set()  # asked before the logs are read
        logged = state.state_of(self._events(), self.plan.ranks)
        if released and not state.ended(logged):
            return "failed"  # the ranks are free again and could not say how it ended
        return logged if self._handle is not None else state.present_state(logged, self.path)

    @property
    def last_step(self) -> int:
        """The step that was finished last by any rank; 0 before the first. It falls when training is rolled back."""
        steps = self._table("steps")
        return int(steps["step"][steps["time"].argmax()]) if steps["step"].size else 0

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
                raise TimeoutError(
                    f"run {self.name!r} is still {self.status} after {timeout} s, at step {self.last_step}"
                )
            time.sleep(0.05)
        self.raise_if_failed()
        return self

    def ended(self) -> bool:
        """Whether the run is over and its ranks are free again."""
        return self.status in state.ENDED and (self._handle is None or self._handle.released.is_set())

    def raise_if_failed(self) -> None:
        """``RunError`` when the run failed or was lost."""
        status = self.status
        if status == "failed":
            first = failure_of(self._events()) or FirstFailure([], "no rank said why")
            advice = f"; {self._handle.advice}" if self._handle is not None and self._handle.advice else ""
            raise RunError(
                f"run {self.name!r} failed at step {self.last_step} on {first.who}: {first.message}{advice}",
                traceback=first.traceback,
            )
        if status == "lost":
            raise RunError(
                f"run {self.name!r} was lost at step {self.last_step}: the process that started it has ended"
            )

    def refuse_if_ended(self, what: str) -> None:
        """``RunError`` when the run can no longer take what is asked."""
        status = self.status
        if status in state.ENDED:
            raise RunError(
                f"run {self.name!r} has ended ({status} at step {self.last_step}): there is nothing to {what}"
            )

    def metrics(self, *, per_rank: bool = False) -> pd.DataFrame:
        """One row per step that all ranks finished: step, loss, lr, grad_norm, tps, step_time_ms and more.

        Values are global (``telemetry.derive.global_metrics``); ``tps`` is tokens per second per device. With
        ``per_rank`` a column ``rank`` is added and each step has a row per rank as well, with that rank's own loss, lr,
        step_time_ms, data_wait_ms and tps; the global rows have rank -1. ``tokens_per_s`` is the total of all devices,
        ``tflops`` 10**12 model operations per second and device, ``mfu`` their share of the device's peak in percent.
        """
        from workbench.telemetry.derive import metrics_frame
        from workbench.telemetry.flops import cost_of

        cost = cost_of(self._events(), self.plan.ranks)
        return metrics_frame(self._table("steps"), self.plan.mesh, per_rank=per_rank, cost=cost)

    def devices(self) -> pd.DataFrame:
        """Device samples: time, rank, cpu_percent, rss_bytes, GPU columns, network and disk bytes, phase, step."""
        from workbench.telemetry.derive import devices_frame

        return devices_frame(self._table("devices"))

    def gradients(self) -> pd.DataFrame:
        """Gradient statistics per step, rank, layer and scope: see ``telemetry.gradients.combine``."""
        from workbench.telemetry.gradients import combine

        return combine(self._table("gradients"), self.plan.mesh)

    def histograms(self) -> pd.DataFrame:
        """How gradients' magnitudes are spread over powers of two: ``telemetry.gradients.combine_histograms``."""
        from workbench.telemetry.gradients import combine_histograms

        return combine_histograms(self._table("histograms"), self.plan.mesh)

    def weights(self) -> pd.DataFrame:
        """Norms of weights, updates and moments per step and layer: see ``telemetry.gradients.combine_weights``."""
        from workbench.telemetry.gradients import combine_weights

        return combine_weights(self._table("weights"), self.plan.mesh)

    def noise_scale(self, *, window: int | None = None) -> pd.DataFrame:
        """Gradient noise scale, averaged over the last ``window`` full sets: see ``telemetry.noise.noise_scale``."""
        from workbench.telemetry.noise import noise_scale

        return noise_scale(self._table("gradients"), self.plan.mesh, self._batch_size(), window=window)

    def _batch_size(self) -> int:
        """Samples of a global batch; a dataloader of the cell's own knows its batch, the spec does not."""
        from workbench.telemetry.derive import batch_of

        return self.spec.batch_size or batch_of(self._table("events"))[0]

    def similarity(self, step: int | None = None, layer: str | None = None) -> pd.DataFrame:
        """Cosines between the replicas' own gradients, a square frame: see ``telemetry.noise.similarity``."""
        from workbench.telemetry.noise import similarity

        return similarity(self._table("gradients"), self._table("sketches"), self.plan.mesh, step, layer)

    def phases(self) -> pd.DataFrame:
        """What each step of each rank was spent on: step, rank, phase, micro_batch, start_ms, duration_ms."""
        from workbench.telemetry.phases import phases_frame

        return phases_frame(self._table("phases"))

    def collectives(self) -> pd.DataFrame:
        """Collectives and messages of the steps that were recorded, with algorithm and bus bandwidth."""
        from workbench.telemetry.phases import collectives_frame

        return collectives_frame(self._table("collectives"))

    def verdict(self) -> Verdict:
        """What limits the run, in a sentence (``print`` it) and in figures: see ``telemetry.verdict.Verdict``."""
        from workbench.telemetry.phases import posting_time
        from workbench.telemetry.verdict import verdict

        return verdict(self._table("phases"), self.plan.mesh, posting_time(self._table("collectives")))

    def events(self) -> pd.DataFrame:
        """Events: time, step, rank, kind, name, value, old_value, who (values decoded)."""
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

    def export(self, to: str, out: str | Path | None = None) -> Path:
        """Write the run as csv, parquet, tensorboard, trace, wandb or mlflow: see ``workbench.export.export``."""
        from workbench.export import export

        return export(self, to, out)

    def replay(self, step: int | None = None, rank: int | None = None) -> Replay:
        """Run a kept step whose loss or gradient was not finite again, on live ranks: see ``workbench.run.replay``."""
        from workbench.run.replay import replay

        return replay(self.path, self.spec, step, rank)

    def __repr__(self) -> str:
        return f"<Run {self.name!r} {self.status} at step {self.last_step}/{self.spec.steps}: {self.plan.describe()}>"

    def _table(self, table: str) -> Columns:
        with self._lock:
            self.store.refresh()
            return self.store.table(table)

    def _events(self) -> Columns:
        events = self._table("events")
        return events if self._handle is None else with_rows(events, self._handle.unwritten)

    def attach(self) -> None:
        """Called by the session that starts the run, before any rank hears of it."""
        self._handle = _Live(self.path)

    def rank_died(self, rank: int, reason: str) -> None:
        """Called by the session: a rank ended while this run needed it. Written where every reader sees it."""
        if self._handle is not None and rank < self.plan.ranks:
            self._handle.rank_died(rank, reason)

    def ranks_that_say(self, states: Sequence[str]) -> set[int]:
        """Ranks in whose log one of these states stands: ``failed``, say."""
        events = self._events()
        said = (events["kind"] == "state") & np.isin(events["name"], states)
        return {int(rank) for rank in events["rank"][said]}

    def ranks_ended(self, ranks: Sequence[int], why: str) -> None:
        """Called by the session before it ends ranks that wait for one that failed."""
        if self._handle is not None:
            self._handle.ranks_ended(ranks, why)

    def detach(self, answers: dict[int, Outcome | None], *, logged: set[int]) -> None:
        """Called by the session when the ranks are free or gone; ``answers``: what each said about its end, ``logged``:
        those whose log says it."""
        if self._handle is not None:
            self._handle.end(answers, logged=logged)


class _Live:
    """What only the session that started a run has. ``released`` is set when its ranks are free again. ``unwritten``:
    events for which there was no room on the disk. ``advice``: what to do before ranks can be used again."""

    def __init__(self, path: Path) -> None:
        self.log = RankLogWriter(path, SESSION_RANK)
        self.released = threading.Event()
        self.unwritten: list[Event] = []
        self.advice = ""
        self._dead: set[int] = set()

    def rank_died(self, rank: int, reason: str) -> None:
        if rank not in self._dead:
            self._dead.add(rank)
            self._tell([Event(time=time.time(), step=0, rank=SESSION_RANK, kind="rank", name="died",
                              value=json.dumps({"rank": rank, "reason": reason}))])  # fmt: skip

    def ranks_ended(self, ranks: Sequence[int], why: str) -> None:
        """Their end is no death that explains anything: it is the consequence of another's."""
        self._dead.update(ranks)
        self.advice = (
            f"{format_ranks(ranks)} waited for it and {'was' if len(ranks) == 1 else 'were'} ended: run %dist_up"
        )
        told = failure("PeerFailed", why, peer=True)
        self._tell([_state(rank, "failed", told) for rank in ranks])

    def end(self, answers: dict[int, Outcome | None], *, logged: set[int]) -> None:
        """Say for the ranks what their logs do not, and close."""
        told = []
        for rank, answer in answers.items():
            if answer is not None and (rank not in logged or answer.log_failure):
                told.append(_state(rank, *answer.what_the_log_lacks(), step=answer.step))
        self._tell(told)
        self.log.close()
        self.released.set()

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            self.log.append(event)
        self.log.flush()
        if self.log.failure is not None:
            self.unwritten += events


def _state(rank: int, name: str, value: object, step: int = 0) -> Event:
    """A rank's state, told on its behalf."""
    return Event(time=time.time(), step=step, rank=rank, kind="state", name=name, value=json.dumps(value))


def newest_live() -> Run | None:
    """The newest run that has not ended; None when all have."""
    for path in reversed(run_directory.runs_with_spec()):
        run = Run(path)
        if run.status not in state.ENDED:
            return run
    return None

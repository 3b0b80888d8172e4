"""A script that ``workbench watch`` started, in one of its processes. Nothing that goes wrong here reaches the script:
it is told once, and the script goes on."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import background
from workbench.core.records import EventKind
from workbench.engine.observed.watched.first_step import WhenImported, after_steps, model_of
from workbench.engine.observed.watched.output import OutputCopy
from workbench.engine.observed.watched.roles import WATCH_RANK, Role, role_of
from workbench.rundir.log import rank_directory

if TYPE_CHECKING:
    from workbench.engine.observed.recording import RankRecording
    from workbench.engine.observed.run import ObservedRun

#: seconds after which a script that has not imported torch is recorded
_WITHOUT_TORCH_S = 3.0
#: the exit code of a script that was stopped from the run
STOPPED = 3


def start(environment: MutableMapping[str, str]) -> None:
    """Watch this process as its role asks for."""
    role = role_of(environment, os.getpid(), sys.orig_argv)
    if role.place is not None:
        environment[WATCH_RANK] = str(os.getpid())
    WatchedScript(role).begin()


class WatchedScript:
    """Records the process from the import of torch on (without torch, after some seconds), and observes the loop of
    the first optimizer that steps, from its second step on."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._recording: RankRecording | None = None
        self._run: ObservedRun | None = None
        self._steps_before = 0
        self._given_up = False
        self._lock = threading.RLock()
        self._process = os.getpid()

    def begin(self) -> None:
        """Watch from now until the process ends."""
        WhenImported(self._guarded(self._torch_is_here)).begin()
        if self._role.place is None:
            atexit.register(self._guarded(self._end))
            return
        self._output = OutputCopy(rank_directory(self._role.place, self._role.rank))
        atexit.register(self._output.end)
        atexit.register(self._guarded(self._end))
        background.timer(_WITHOUT_TORCH_S, self._without_torch, failed=self._give_up).start()

    def _guarded(self, call: Callable[..., object]) -> Callable[..., None]:
        def guarded(*args: Any) -> None:
            if self._given_up or os.getpid() != self._process:
                return
            try:
                call(*args)
            except Exception as error:  # ours: the script is not ours to break
                self._give_up(error)

        return guarded

    def _give_up(self, error: BaseException) -> None:
        if self._given_up:
            return
        self._given_up = True
        why = background.described(error)
        print(f"workbench watch: no longer watched: {why}. The script continues", file=sys.stderr, flush=True)
        if self._recording is not None and not self._recording.log.closed:
            self._recording.log.event(EventKind.WARNING, "watch_failed", background.traceback_of(error))
            atexit.register(self._recording.end, "finished")

    def _torch_is_here(self) -> None:
        after_steps(self._after_step)
        self._record()

    def _without_torch(self) -> None:
        if "torch" not in sys.modules:
            self._record()

    def _record(self) -> None:
        """Begin to record; the run directory is made by rank 0."""
        with self._lock:
            place = self._role.place
            if place is None or self._recording is not None:
                return
            from workbench.core.config import MonitorSpec
            from workbench.engine.observed.recording import RankRecording

            if self._role.rank == 0:
                self._make(place)
            self._recording = RankRecording(place, self._role.rank, monitor=MonitorSpec())

    def _make(self, place: Path) -> None:
        from workbench.engine.observed.spec import spec_of
        from workbench.rundir import directory

        directory.create(spec_of(self._role.name, ranks=self._role.ranks, kind="watched"), at=place)

    # the loop

    def _after_step(self, optimizer: Any) -> None:
        stops: list[bool] = []
        self._guarded(lambda: stops.append(self._stepped(optimizer)))()
        if any(stops):
            print("workbench watch: stopped", file=sys.stderr, flush=True)
            raise SystemExit(STOPPED)

    def _stepped(self, optimizer: Any) -> bool:
        """Whether the script is to end."""
        if self._run is None:
            self._run = self._observed(optimizer)
            return False
        if optimizer is not self._run.optimizer:
            self._run.tell_once("other_optimizer", f"{type(optimizer).__name__} steps too: the run is of the "
                                f"{type(self._run.optimizer).__name__} that stepped first")  # fmt: skip
            return False
        return self._run.advance()

    def _observed(self, optimizer: Any) -> ObservedRun:
        from workbench.engine.observed.start import start as observe
        from workbench.errors import ConfigError

        model = model_of(optimizer)
        if model is None:
            raise ConfigError(f"no module holds what {type(optimizer).__name__} updates: its steps are not seen")
        return observe(
            model,
            optimizer,
            name=self._role.name,
            steps=None,
            on_checkpoint=None,
            scaler=None,
            monitor=None,
            timeout_s=30.0,
            recording=self._recording,
            steps_before=1,
        )

    # the end

    def _end(self) -> None:
        self._record()
        error = getattr(sys, "last_value", None)  # of a SystemExit the command's parent knows
        state = "finished" if error is None else "failed"
        if self._run is not None:
            self._run.close(state, error, others_come=False)
        elif self._recording is not None:
            self._end_without_steps(state, error)

    def _end_without_steps(self, state: str, error: BaseException | None) -> None:
        assert self._recording is not None
        why = "it did not import torch" if "torch" not in sys.modules else "no optimizer of torch stepped twice"
        self._recording.log.event(EventKind.WARNING, "no_steps", f"devices and output only: {why} in this process")
        self._recording.end(state, error)

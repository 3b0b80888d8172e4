"""Checkpoints of a training: what goes into one beside weights, the best one, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.frameworks import Capability
from workbench.core.records import EventKind
from workbench.core.rules.criteria import Best, parse_best, value_of
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.capabilities import Checkpointable, needed
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.rundir import checkpoints
from workbench.rundir.log import RankLogWriter

if TYPE_CHECKING:
    from workbench.engine.state.background_save import BackgroundSave
    from workbench.engine.state.checkpoint import Checkpoints


class Saving:
    """Writes and restores checkpoints of one run, on all ranks at once. ``saved``: the step of its newest one; -1: it
    has none. ``best``: what the best one is best at; None: nobody asked."""

    def __init__(
        self,
        run: Path,
        workload: Workload,
        strategy: Strategy,
        control: AgreedControl,
        log: RankLogWriter,
    ) -> None:
        self._run = run
        self._workload = workload
        self._strategy = strategy
        self._control = control
        self._log = log
        self._told: set[str] = set()
        self.saved = -1
        self._newest: tuple[int, BackgroundSave] | None = None  # its step, and what writes it
        self._best: tuple[float | None, BackgroundSave] | None = None  # the best value before, and what writes it
        spec = strategy.spec
        self.best: Best | None = parse_best(spec.save_best) if spec.save_best else None
        self._best_value: float | None = None
        from workbench.engine.state.base_weights import BaseWeights

        self._base = BaseWeights(workload.base)

    def checkpoints(self, snapshots: Path | None = None) -> Checkpoints:
        """What writes and reads them, or the copies in memory in the directory ``snapshots``. ``ConfigError`` where the
        strategy has none."""
        from workbench.engine.state.checkpoint import Checkpoints

        needed(self._strategy, Checkpointable, Capability.CHECKPOINTABLE)
        keep, cell = self._strategy.spec.keep, self._workload.cell_state
        own = self._workload.generators
        of = (self._strategy, self._control, self._log)
        if snapshots is not None:
            return Checkpoints(snapshots, *of, keep=1, cell=cell, generators=own, base=self._base, tells=False)
        return Checkpoints(self._run, *of, keep, cell, own, self._base)

    def save(self, step: int, state: dict[str, Any], left_out: list[str], *, asked: bool) -> bool:
        """Write the checkpoint of ``step``; whether it is there. ``left_out``: parts of the schedule that ``state``
        does not hold."""
        self.begin_save(step, state, left_out, asked=asked)
        self.finish()
        return self.saved == step

    def begin_save(self, step: int, state: dict[str, Any], left_out: list[str], *, asked: bool = False) -> None:
        """Write the checkpoint of ``step`` while training goes on. One that is being written is finished first."""
        self._finish_newest()
        writing = self.checkpoints().begin(step, state, asked=asked)
        self._newest = None if writing is None else (step, writing)
        self._tell_what_is_missing(step, left_out)

    def save_if_best(
        self, step: int, values: Mapping[str, Any], state: Callable[[], tuple[dict[str, Any], list[str]]]
    ) -> None:
        """Write the best checkpoint again, while training goes on, when an evaluation gave a better value than all
        before."""
        value = value_of(self.best.name, values) if self.best is not None else None
        if self.best is None or value is None:
            return
        self._finish_best()  # whether it is there decides what the best value so far is
        if not self.best.improves(value, self._best_value):
            return
        about = {"name": self.best.name, "highest": self.best.highest, "value": value}
        found, left_out = state()
        writing = self.checkpoints().begin(step, found, asked=True, best=about)
        if writing is not None:
            self._best = (self._best_value, writing)
            self._best_value = value
        self._tell_what_is_missing(step, left_out)

    def finish(self) -> None:
        """Wait for what is being written. Collective."""
        self._finish_newest()
        self._finish_best()

    def _finish_newest(self) -> None:
        if self._newest is not None:
            step, writing = self._newest
            if self.checkpoints().finish(writing):
                self.saved = step
            self._newest = None  # where a rank died meanwhile, ``close`` ends it

    def _finish_best(self) -> None:
        if self._best is not None:
            before, writing = self._best
            if not self.checkpoints().finish(writing):
                self._best_value = before
            self._best = None

    def close(self) -> None:
        """End what is being written: it becomes a checkpoint where all ranks finish their part within
        ``background_save.TIMEOUT_S`` seconds, and leaves nothing otherwise. Not collective."""
        for kept in (self._newest, self._best):
            if kept is not None:
                kept[1].abandon()
        self._newest = self._best = None

    def restore(self, path: Path, prepare: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """The trainer's state of a checkpoint, which is loaded into the ranks."""
        return self.checkpoints().restore(path, prepare=prepare)

    def begin(self, resumed: Path | None, step: int) -> None:
        """Find the best value so far: of this run, or of the run that it goes on from after ``step``, whose best
        checkpoint is taken over. Collective."""
        if self._base.tensors and isinstance(self._strategy, Checkpointable):
            self._base.watch(self._strategy.rank_state())
        if self.best is None:
            return
        if self._strategy.rank == 0 and resumed is not None and checkpoints.best_of(self._run) is None:
            parent = resumed.parent.parent
            there = checkpoints.best_of(parent)
            if there is not None and self._is_same(there) and there["step"] <= step:
                checkpoints.keep_best(self._run, parent)
        own = checkpoints.best_of(self._run) if self._strategy.rank == 0 else None
        self._best_value = self._control.gathered(own["value"] if own is not None and self._is_same(own) else None)[0]

    def _is_same(self, other: Mapping[str, Any]) -> bool:
        return self.best == Best(other["name"], other["highest"])

    def _tell_what_is_missing(self, step: int, left_out: list[str]) -> None:
        if left_out:
            self._tell("schedule_not_saved", f"lr_scheduler: {', '.join(left_out)}", step)
        beside = self._workload.cell_state
        if beside is not None and beside.left_out:
            names = ", ".join(beside.left_out)
            self._tell(
                "state_not_saved",
                f"checkpoints do not hold the cell's variables {names}: state = [...] in the cell names what they hold",
                step,
            )

    def _tell(self, name: str, text: str, step: int) -> None:
        if name not in self._told:
            self._told.add(name)
            self._log.event(EventKind.WARNING, name, text, step=step)

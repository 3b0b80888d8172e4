"""Where a run comes from and what goes on from it: branches and ``--resume``, by what specs say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from workbench.core.config import SPEC_FILE, ParallelPlan, TrainSpec, read_spec_options
from workbench.core.controls import BEST
from workbench.errors import ConfigError, SchemaError, WorkbenchError
from workbench.rundir import checkpoints
from workbench.rundir.directory import run_name

#: of a directory's name: the second in which the run was made
_WHEN = len("2026-05-01-120000")


def parent(spec: TrainSpec) -> tuple[str, int | str] | None:
    """Name of the run that this one goes on from, and the step; None for one that began by itself."""
    if not spec.resume or checkpoints.distributed(spec.resume) is not None:
        return None
    run, step = checkpoints.split(spec.resume)
    return run_name(Path(run)), step


def origin(spec: TrainSpec) -> str:
    """In words, which run this one continues, and under which plan that was if it was another one: "continues first
    from step 5, under ddp2"; "" for a run that began by itself."""
    found = parent(spec)
    if found is None:
        return ""
    return f"continues {found[0]} from {place(found[1])}{_under(Path(checkpoints.split(spec.resume)[0]), spec.plan)}"


def _under(run: Path, plan: ParallelPlan) -> str:
    """``", under ddp2"`` where the plan of a run is another one than ``plan``, and can be read."""
    try:
        other = TrainSpec.from_options(read_spec_options(run / SPEC_FILE)).plan
    except (OSError, WorkbenchError):
        return ""  # taken away, or another version's
    return f", under {other.describe()}" if other != plan else ""


def place(step: int | str) -> str:
    """A checkpoint in words: "step 120", "its best checkpoint"."""
    return "its best checkpoint" if step == BEST else f"step {step}"


class Branches:
    """Runs beside ``run``, of this ``plan``, that go on from it: ``look`` reads specs that are new since the last
    call."""

    def __init__(self, run: Path, plan: ParallelPlan) -> None:
        self.found: list[tuple[str, int | str]] = []
        self._run, self._plan = run.absolute(), plan
        self._plans: dict[str, str] = {}
        self._seen: set[str] = set()

    def look(self) -> list[tuple[str, int | str]]:
        """(name, step) of each, oldest first."""
        for name in sorted(self._later()):
            spec = self._run.parent / name / SPEC_FILE
            try:
                mentioned = str(self._run).encode() in spec.read_bytes()
            except OSError:
                continue  # its spec is still being written, or it is no run
            self._seen.add(name)
            if mentioned and (step := self._step(spec)) is not None:
                self.found.append((run_name(spec.parent), step))
                self._plans[run_name(spec.parent)] = _under(spec.parent, self._plan)
        return self.found

    def words(self) -> str:
        """The runs that continue this one: "continues in slower from step 120, under zero2"; "" while none does."""
        said = [f"{name} from {place(step)}{self._plans[name]}" for name, step in self.found]
        return f"continues in {', '.join(said)}" if said else ""

    def _later(self) -> Iterator[str]:
        try:
            names = os.listdir(self._run.parent)
        except OSError:  # taken away
            return
        for name in names:
            if name not in self._seen and name != self._run.name and name[:_WHEN] >= self._run.name[:_WHEN]:
                yield name

    def _step(self, spec: Path) -> int | str | None:
        try:
            run, step = checkpoints.split(str(read_spec_options(spec).get("resume", "")))
        except (ConfigError, SchemaError):
            return None  # another version's
        return step if Path(run) == self._run else None

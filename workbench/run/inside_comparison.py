"""Two runs, or two ranks, compared module by module: same batch, same weights, on the live session's ranks."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.cluster.session import Session
from workbench.core.frameworks import Capability
from workbench.errors import ConfigError, RunDirectoryError
from workbench.history.compare import compare
from workbench.history.findings import Difference as OptionDifference
from workbench.run.run import Run
from workbench.rundir import checkpoints
from workbench.telemetry.inside.compared import GRADIENT, INPUT, Difference, compared, joined, origin

if TYPE_CHECKING:
    import pandas as pd

_LOOK = "from workbench.engine.module_outputs import look as _look; _look({run!r}, {rank}, **{given!r})"
#: the distance from 1 to the next number of each precision
_ROUNDING = {"fp32": 2.0**-23, "bf16": 2.0**-7, "fp16": 2.0**-10}


@dataclass(frozen=True, kw_only=True)
class InsideComparison:
    """The outcome of ``compare_inside``. ``runs``: how they are called; ``weights``: where those that both computed
    with come from. ``rows``: of every module that both have, in the order of the computation (inputs and outputs
    forward, then gradients backward). ``first``: the first output or gradient that differs, ``None`` without any;
    ``origin``: in words, whose computation made it so. ``options``: what differs in specs, environments and code."""

    runs: tuple[str, str]
    weights: str
    rows: tuple[Difference, ...]
    first: Difference | None
    origin: str
    options: tuple[OptionDifference, ...]

    def table(self) -> pd.DataFrame:
        """One row per module and ``what`` (output, gradient): difference (relative L2), rounding (what one rounding of
        all weights changes), limit (ten times that), differs, note (why it was not compared)."""
        import pandas as pd

        names = ("layer", "what", "call", "difference", "rounding", "limit", "differs", "note")
        rows = [row for row in self.rows if row.what != INPUT]
        return pd.DataFrame([[getattr(row, name) for name in names] for row in rows], columns=list(names))

    def __str__(self) -> str:
        compared_rows = [row for row in self.rows if row.what != INPUT and not row.note]
        many = sum(row.differs for row in compared_rows)
        lines = [f"{self.runs[0]} and {self.runs[1]}, same batch, weights of {self.weights}, without dropout:"]
        if self.first is None:
            largest = max(compared_rows, key=lambda row: row.difference / row.limit, default=None)
            told = (
                "" if largest is None else f"; the largest difference is {largest.difference:.2g}, of {_said(largest)}"
            )
            lines.append(f"no output or gradient of {len(compared_rows)} differs by more than rounding{told}")
        else:
            lines.append(f"first difference: {self.origin}")
            lines.append(
                f"  {_said(self.first)} differs by {self.first.difference:.2g} of its norm; rounding makes "
                f"{self.first.rounding:.2g} of it, {self.first.limit:.2g} is allowed"
            )
            lines.append(f"  {many} of {len(compared_rows)} outputs and gradients differ: .table() has all")
        skipped = [row for row in self.rows if row.note and row.what != INPUT]
        if skipped:
            lines.append(f"  not compared: {len(skipped)}, the first {_said(skipped[0])}: {skipped[0].note}")
        for each in self.options:
            lines.append(f"  {each.section}: {each.name}: {' / '.join(str(value) or 'none' for value in each.values)}")
        return "\n".join(lines)

    __repr__ = __str__


def _said(row: Difference) -> str:
    what = "the gradient of the output" if row.what == GRADIENT else "the output"
    call = f" (call {row.call + 1})" if row.call else ""
    return f"{what} of {row.layer or 'the model'}{call}"


def compare_inside(
    a: str | Path | Run, b: str | Path | Run | None = None, *, ranks: tuple[int, int] | None = None
) -> InsideComparison:
    """Compute one batch in the models of two runs, with the same weights, and find the first module that differs.

    Both are computed on the live session's ranks (started where there is none), one data-parallel replica of each,
    under its own plan and precision, with the code that the run was made with and the packages that are installed now.
    The batch is the first of ``a``; the weights are those of the newest checkpoint of ``a`` (``RUN@STEP``: of that
    step), or, without any, those with which ``a`` began. Dropout is off. How much the two may differ is measured by
    computing ``a`` once more with every weight changed by one rounding of the coarser precision.

    ``ranks``: the first rank that computes ``a``, and the first that computes ``b``, or ``a`` again where ``b`` is left
    out: then two ranks are compared, which finds the one whose device, host or packages compute something else.

    Raises ``ConfigError`` where a plan cannot be looked into, ``RunDirectoryError`` when a run is not there or too few
    ranks are up, ``RanksBusyError`` while the ranks train, and ``CellError`` when a rank fails or the weights do not
    fit.
    """
    if b is None and (ranks is None or ranks[0] == ranks[1]):
        raise ConfigError("give two runs, or one run and two different ranks that both compute it", field="RUN")
    (first, step), (second, _) = _named(a), _named(a if b is None else b)
    pair = (first, second)
    begins = (0, 0) if ranks is None else ranks
    for run in pair:
        reason = run.plan.why_unavailable(Capability.INSPECTABLE)
        if reason:
            raise ConfigError(f"run {run.name!r} cannot be compared inside: {reason}", field="RUN")
    sizes = [run.plan.mesh.replica_size for run in pair]
    needed = max(begin + size for begin, size in zip(begins, sizes, strict=True))
    if min(begins) < 0 or (b is None and abs(begins[0] - begins[1]) < sizes[0]):
        raise ConfigError(
            f"ranks {begins[0]} and {begins[1]}: a replica of {first.name} takes {sizes[0]} ranks from each on, and "
            "these may not overlap",
            field="ranks",
        )
    session = Session.current() or Session.up(needed)
    if session.n < needed:
        raise RunDirectoryError(
            f"this takes {needed} ranks, but {session.n} are up: run %dist_down, then %dist_up -n {needed}"
        )
    has_some = step != checkpoints.NEWEST or checkpoints.steps(first.path)
    checkpoint = checkpoints.find(first.path, step) if has_some else None
    rounding = max(_ROUNDING[run.spec.precision] for run in pair)
    with tempfile.TemporaryDirectory(prefix="workbench-inside-") as directory:
        found = []
        for place, (run, size, begin) in enumerate(zip(pair, sizes, begins, strict=True)):
            out = Path(directory) / str(place)
            out.mkdir()
            given = {"token": f"inside-{time.time_ns()}", "shared": directory, "out": str(out)}
            given |= {"checkpoint": "" if checkpoint is None else str(checkpoint)}
            _look(session, run.path, range(begin, begin + size), given | {"rounding": 0.0 if place else rounding})
            found.append(_read(out, range(size), "", run))
        again = _read(Path(directory) / "0", range(sizes[0]), "rounded-", first)
    rows = compared(found[0], found[1], again, rounding)
    earliest, told = origin(rows)
    weights = first.name if checkpoint is None else f"{first.name} at step {checkpoints.step_of(checkpoint)}"
    return InsideComparison(
        runs=_labels(pair, ranks, sizes),
        weights=weights if checkpoint is not None else f"{weights} when it began",
        rows=tuple(rows),
        first=earliest,
        origin=told,
        options=() if b is None else tuple(compare([first, second]).differences),
    )


def _labels(pair: tuple[Run, Run], ranks: tuple[int, int] | None, sizes: list[int]) -> tuple[str, str]:
    if ranks is None:
        return pair[0].name, pair[1].name
    places = [
        f"rank {rank}" if size == 1 else f"ranks {rank}-{rank + size - 1}"
        for rank, size in zip(ranks, sizes, strict=True)
    ]
    return f"{pair[0].name} on {places[0]}", f"{pair[1].name} on {places[1]}"


def _named(run: str | Path | Run) -> tuple[Run, int | str]:
    """A run, and the step of ``RUN@STEP``."""
    if isinstance(run, Run):
        return run, checkpoints.NEWEST
    name, step = checkpoints.split(str(run))
    return Run(name), step


def _look(session: Session, run: Path, ranks: Sequence[int], given: dict[str, Any]) -> None:
    code = [_LOOK.format(run=str(run), rank=place, given=given) for place in range(len(ranks))]
    submissions = [session.submit(each, [rank], in_group=False) for rank, each in zip(ranks, code, strict=True)]
    for submission in submissions:
        session.wait(submission)
    for submission in submissions:
        submission.result().raise_on_error()


def _read(directory: Path, ranks: Sequence[int], prefix: str, run: Run) -> list[Any]:
    found = []
    for rank in ranks:
        index = json.loads((directory / f"{prefix}{rank}.json").read_text(encoding="utf-8"))
        with np.load(directory / f"{prefix}{rank}.npz") as arrays:
            found.append([(about, arrays[str(place)]) for place, about in enumerate(index)])
    return joined(found, run.plan.mesh.tp)

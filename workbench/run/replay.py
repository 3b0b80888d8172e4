"""Replays, on the live session's ranks, a recorded step whose loss or gradient was not finite."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cluster.session import Session
from workbench.core.config import TrainSpec
from workbench.errors import RunDirectoryError
from workbench.rundir.kept_steps import REPLAY_FILE, find_kept, read_fault

_REPLAY = "from workbench.engine.replay import replay as _replay; _replay({run!r}, {step}, {first}, {rank}, {token!r})"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a replay on the ranks of the data-parallel replica that contains ``rank``.

    ``layer``: qualified name of the module that produced the first non-finite number. ``module``: its class.
    ``where``: "forward" or "backward". ``culprit``: the rank it was on. These are "" (``culprit``: -1) when every
    number was finite in the replay. ``inputs``: descriptions of the module's input tensors (shape, dtype,
    nonfinite_count, and min, max and mean of the finite elements). ``output``: the same of its output ("forward") or of
    the gradient ("backward"). ``loss``: the replayed loss of the rank's batch share. ``logged_loss``: that of the
    training. ``bit_equal``: whether the two are equal in every bit. ``indices``: dataset indices of the batch's
    samples, or None when unknown. ``kept``: the directory of the recorded step.
    """

    step: int
    rank: int
    layer: str
    module: str
    where: str
    culprit: int
    loss: float
    logged_loss: float
    bit_equal: bool
    inputs: list[dict[str, Any]]
    output: list[dict[str, Any]]
    indices: list[int] | None
    kept: Path

    def __str__(self) -> str:
        lines = [f"step {self.step} on rank {self.rank}: loss {self.loss:.9g}, in training {self.logged_loss:.9g}, "
                 f"{'equal in every bit' if self.bit_equal else 'not equal'}"]  # fmt: skip
        if not self.where:
            return "\n".join([*lines, "every number was finite in the replay"])
        what = "output" if self.where == "forward" else "gradient"
        name = f"{self.layer} ({self.module})" if self.layer else self.module
        lines.append(f"first {what} that is not finite: {name} on rank {self.culprit}, in the {self.where} pass")
        for title, tensors in (("input", self.inputs), (what, self.output)):
            lines += [f"  {title} {_described(tensor)}" for tensor in tensors]
        if self.indices is not None:
            lines.append(f"samples of the batch in the dataset: {self.indices}")
        return "\n".join([*lines, f"batch, random state and weights: {self.kept}"])

    __repr__ = __str__


def replay(run: Path, spec: TrainSpec, step: int | None = None, rank: int | None = None) -> Replay:
    """Run the forward and backward pass of a recorded step again, and find the first non-finite number.

    ``step`` None: the first step that was recorded with its weights; ``rank`` None: the rank with the first non-finite
    number. Uses the live session's ranks, or starts as many as a replica has. Raises ``RunDirectoryError`` when no step
    was recorded or too few ranks are up, ``RanksBusyError`` while the ranks train, and ``CellError`` when a rank fails.
    """
    directory = find_kept(run, step, rank)
    about = read_fault(directory)
    size = spec.plan.mesh.replica_size
    asked = int(directory.parent.name.removeprefix("rank-"))
    first = asked // size * size
    session = Session.current() or Session.up(size)
    if session.n < size:
        raise RunDirectoryError(
            f"a replica of this run has {size} ranks, but {session.n} are up: run %dist_down, then %dist_up -n {size}"
        )
    _run_on(session, run, about["step"], first, size)
    return _result(directory, about, asked)


def _run_on(session: Session, run: Path, step: int, first: int, size: int) -> None:
    """Run the replay on ``size`` ranks and wait for it. Raises ``CellError`` when a rank fails.

    ``first``: the first rank of the replica in the recorded run.
    """
    token = f"replay-{time.time_ns()}"
    submissions = []
    for rank in range(size):
        code = _REPLAY.format(run=str(run), step=step, first=first, rank=rank, token=token)
        submissions.append(session.submit(code, [rank], in_group=False))
    for submission in submissions:
        session.wait(submission)
    for submission in submissions:
        submission.result().raise_on_error()


def _result(directory: Path, about: dict[str, Any], rank: int) -> Replay:
    found = json.loads((directory / REPLAY_FILE).read_text(encoding="utf-8"))
    finding = found["finding"] or {"layer": "", "module": "", "where": "", "rank": -1, "inputs": [], "output": []}
    return Replay(
        step=about["step"],
        rank=rank,
        layer=finding["layer"],
        module=finding["module"],
        where=finding["where"],
        culprit=finding["rank"],
        loss=_number(found["loss"]),
        logged_loss=_number(found["logged_loss"]),
        bit_equal=found["loss"] == found["logged_loss"],
        inputs=finding["inputs"],
        output=finding["output"],
        indices=about["indices"],
        kept=directory,
    )


def _number(text: str | None) -> float:
    return math.nan if text is None else float.fromhex(text)


def _described(tensor: dict[str, Any]) -> str:
    shape = " x ".join(map(str, tensor["shape"])) or "scalar"
    if tensor["min"] is None:
        return f"{shape} {tensor['dtype']}: none of {math.prod(tensor['shape'])} elements is finite"
    spread = f"{tensor['min']:.4g} to {tensor['max']:.4g}, mean {tensor['mean']:.4g}"
    return f"{shape} {tensor['dtype']}: {spread}, {tensor['nonfinite_count']} not finite"

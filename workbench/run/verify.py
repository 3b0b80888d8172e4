"""Verifies a plan: trains a few steps under it and under a reference, with the same weights and batches, and compares.

Three short trainings follow each other on the live session's ranks, each in a run directory of its own: the plan, the
reference in fp32, and the reference in the plan's precision with weights perturbed by rounding errors, which says how
far equal trainings part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cluster.session import Session
from workbench.core import algorithms
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.frameworks import Capability, framework
from workbench.core.records import EventKind
from workbench.core.user_code.cell_source import names_of
from workbench.errors import ConfigError, RunError
from workbench.events.decode import of_kind
from workbench.run.job import TrainingJob
from workbench.run.launch import Progress, counting, follow, resolved, session_for
from workbench.run.peer_watch import PeerWatch
from workbench.run.run import Run
from workbench.run.verify_options import AGAINST, DDP, SINGLE
from workbench.rundir import directory as run_directory
from workbench.rundir import state
from workbench.rundir.directory import CELL_FILE
from workbench.rundir.recordings import RECORDING_DIR, RankRecording, RecordRequest
from workbench.verification.judge import Plan, judge
from workbench.verification.result import Verification
from workbench.verification.training import Training

STEPS = 20
#: where trainings are that are not kept
_BESIDE = "verify"
_SEED = 1
#: options of a short training that is compared: it neither ends early nor writes anything but its recording
_SHORT = {
    "epochs": 0,
    "save_every": 0,
    "save_best": "",
    "stop_when": "",
    "final_checkpoint": False,
    "max_restarts": 0,
    "snapshot_every": 0,
    "resume": "",
    "level": "off",
    "watch": "",
    "grad_every": None,
    "grad_layers": "",
    "on_nonfinite": "go",
    "notify": "",
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One of the trainings: what it is, its spec, where it is, and how it is recorded."""

    what: str
    spec: TrainSpec
    path: Path
    request: RecordRequest


def verify(
    options: Mapping[str, Any],
    *,
    config: str | Path | None = None,
    cell: str | None = None,
    against: str = SINGLE,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Verify a plan for a recipe, a spec file or a cell, and return what was found; it is kept in a new run directory.

    ``options``, ``config``, ``cell``: as ``workbench.train``. ``against``: "single", one process with the whole batch
    in fp32, or "ddp", torch's DistributedDataParallel over as many ranks (also where one process runs out of memory).
    ``steps``: how many are compared (default: ``options["steps"]``, or 20). ``progress`` is told how far it is.

    Raises as ``workbench.train``, ``ConfigError`` for a plan that cannot be recorded, and ``RunError`` when a training
    fails. After an error or an interrupt nothing is left.
    """
    steps = steps or options.get("steps") or STEPS
    given = {"name": "verify", **{name: value for name, value in options.items() if value is not None}, "steps": steps}
    request = resolved(given, config=config, cell=cell)
    spec = _short(request.spec, steps, request.cell)
    path = run_directory.create(spec, request.cell, like=request.cell_folder)
    return _verified(path, spec, path, against, progress)


def verify_run(run: Run, against: str = SINGLE, steps: int = STEPS, progress: Progress | None = None) -> Verification:
    """Verify the plan of a run from its first step on, and keep what was found in its directory. Errors: see
    ``verify``."""
    if not state.ended(run.status):
        raise ConfigError(f"run {run.name!r} is {run.status}: verify it when it has ended, as it uses the ranks")
    file = run.path / CELL_FILE
    spec = _short(run.spec, steps, file.read_text(encoding="utf-8") if file.is_file() else None)
    return _verified(run.path, spec, run.path / _BESIDE / "plan", against, progress)


def _short(spec: TrainSpec, steps: int, cell: str | None) -> TrainSpec:
    """``spec`` for ``steps`` steps, without validation unless the learning rate of the ``cell`` follows it."""
    plan = spec.plan
    if plan.algorithm:
        what = "lets ranks step by themselves" if algorithms.is_local(plan.algorithm) else "compresses gradients"
        raise ConfigError(
            f"--algorithm {plan.algorithm} {what}, so losses differ from those of one process by intention: verify the "
            "plan without it",
            field="--algorithm",
        )
    for capability in (Capability.CHECKPOINTABLE, Capability.WATCHABLE):
        reason = plan.why_unavailable(capability)
        if reason:
            raise ConfigError(f"{plan.describe()} cannot be verified: {reason}", field="--plugin")
    follows = cell is not None and "lr_scheduler_metric" in names_of(cell)
    return spec.replace(**{**_SHORT, "eval_every": spec.eval_every if follows else 0}, steps=steps)


def reference_of(spec: TrainSpec, against: str, precision: str = "fp32") -> TrainSpec:
    """The training that a plan is compared with, of torch unless the plan trains models of another library.
    ``ConfigError`` for anything but "single" and "ddp"."""
    if against not in AGAINST:
        raise ConfigError(f"--against {against!r}: use {' or '.join(AGAINST)}", field="--against")
    ranks = spec.plan.ranks if against == DDP else 1
    own = framework(spec.plan.framework).adopts
    if own and against == DDP:
        raise ConfigError(
            f"--against ddp: torch's DDP does not train a model of --framework {spec.plan.framework}: use --against "
            f"{SINGLE}",
            field="--against",
        )
    options = {name: value for name, value in spec.options().items() if name not in ParallelPlan.__dataclass_fields__}
    plain = framework(spec.plan.framework if own else "torch")
    plan = {"framework": plain.name, "plugin": plain.plugins[0].name, "ranks": ranks}
    plan["sync_batchnorm"] = spec.plan.sync_batchnorm
    return TrainSpec.from_options({**options, **plan, "precision": precision, "accumulate": 1})


def trainings(path: Path, spec: TrainSpec, plan_path: Path, against: str) -> list[Trained]:
    """The three trainings of a verification that is kept in ``path``: the plan, the reference, the perturbed one."""
    beside, reference = path / _BESIDE, reference_of(spec, against)
    rounded = reference_of(spec, against, spec.precision)
    perturbed = RecordRequest(perturbed=_SEED, precision=spec.precision)
    return [
        Trained(what=spec.plan.describe(), spec=spec, path=plan_path, request=RecordRequest()),
        Trained(what="reference", spec=reference, path=beside / "reference", request=RecordRequest()),
        Trained(what="rounding errors", spec=rounded, path=beside / "rounding", request=perturbed),
    ]


def _verified(path: Path, spec: TrainSpec, plan_path: Path, against: str, progress: Progress | None) -> Verification:
    is_new = plan_path == path
    try:
        planned = trainings(path, spec, plan_path, against)
        session = session_for(spec)
        runs = []
        for turn, training in enumerate(planned):
            try:
                steps = training.spec.steps
                tell = counting(progress, training.what, turn * steps, len(planned) * steps)
                runs.append(_train(session, training, path, tell))
            except RunError as error:
                if turn != 1 or against == DDP or not _out_of_memory(error):
                    raise
                _clear(path, keep=is_new)
                return _verified(path, spec, plan_path, DDP, progress)
        found = compare(runs, planned, against)
        found.write(path)
    except BaseException:
        _clear(path, keep=not is_new)
        raise
    _clear(path, keep=True)
    return found


def _out_of_memory(error: RunError) -> bool:
    return "out of memory" in str(error).lower() or "MemoryError" in str(error)


def _train(session: Session, training: Trained, beside: Path, tell: Callable[[int], object]) -> Run:
    """Train to the end and return the run. An interrupt ends the training first."""
    make(training, beside)
    session.check_free(range(training.spec.plan.ranks))
    job = TrainingJob(Run(training.path))
    submission = job.start(session)
    PeerWatch(session, job, submission)
    follow(job.run, session, tell)
    job.run.raise_if_failed()
    tell(training.spec.steps)
    return job.run


def make(training: Trained, beside: Path) -> None:
    """Make the run directory of a training, with the cell of the run directory ``beside``."""
    training.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if training.path != beside:
        file = beside / CELL_FILE
        cell = file.read_text(encoding="utf-8") if file.is_file() else None
        run_directory.create(training.spec, cell, like=beside, at=training.path)
    training.request.write(training.path)


def compare(runs: list[Run], planned: list[Trained], against: str) -> Verification:
    """The verdict on the recordings of the three ``trainings``."""
    spec, reference = planned[0].spec, planned[1].spec
    words = "one process" if against == SINGLE else f"torch's DistributedDataParallel on {reference.plan.ranks} ranks"
    about = Plan(
        name=spec.plan.describe(),
        reference=words,
        precision=spec.precision,
        accumulate=spec.accumulate,
        micro_batches=spec.plan.micro_batches,
        clip=spec.clip,
    )
    plan, right, perturbed = (_training(run) for run in runs)
    return judge(plan, right, perturbed, about)


def _training(run: Any) -> Training:
    ranks = [RankRecording(run.path, rank) for rank in range(run.plan.ranks)]
    run.store.refresh()
    events = run.store.table("events")
    remarks = {event.name: str(event.value) for event in of_kind(events, EventKind.WARNING)}
    return Training(run.plan.mesh, ranks, run.metrics()["loss"].tolist(), remarks)


def _clear(path: Path, *, keep: bool) -> None:
    """Remove the recordings, and the run with them unless it is to be kept."""
    shutil.rmtree(path / _BESIDE, ignore_errors=True)
    shutil.rmtree(path / RECORDING_DIR, ignore_errors=True)
    if not keep:
        shutil.rmtree(path, ignore_errors=True)

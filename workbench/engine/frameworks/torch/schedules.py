"""The schedules of torch's pipelines, and which plans they can run. Imports no tensor library."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.frameworks import PlanOptions
from workbench.errors import ConfigError, suggest


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One order of the micro-batches of a step.

    ``stages``: how many stages each pipeline rank holds. ``torch_class``: in ``torch.distributed.pipelining``.
    ``in_rounds``: micro-batches go through a rank's stages in equal rounds, so torch asks for a number of them that
    rounds divide. ``keeps_busy``: as many micro-batches as ranks are the least it can run.
    """

    title: str
    torch_class: str
    stages: int = 1
    in_rounds: bool = False
    keeps_busy: bool = True
    splits_backward: bool = False


#: value of ``--schedule`` -> what it is
SCHEDULES = {
    "1f1b": Schedule(title="1F1B", torch_class="Schedule1F1B"),
    "gpipe": Schedule(title="GPipe", torch_class="ScheduleGPipe", keeps_busy=False),
    "interleaved": Schedule(
        title="interleaved 1F1B", torch_class="ScheduleInterleaved1F1B", stages=2, in_rounds=True, keeps_busy=False
    ),
    "zero-bubble": Schedule(
        title="interleaved zero-bubble",
        torch_class="ScheduleInterleavedZeroBubble",
        stages=2,
        in_rounds=True,
        keeps_busy=False,
        splits_backward=True,
    ),
}


def check_schedule(plan: PlanOptions) -> None:
    """Refuse, with ``ConfigError``, a number of micro-batches that the schedule of ``plan`` cannot run."""
    if plan.schedule not in SCHEDULES:
        raise ConfigError(
            f"unknown schedule {plan.schedule!r}: {suggest(plan.schedule, list(SCHEDULES))}", field="--schedule"
        )
    if plan.pp == 1:
        _check_one_stage(plan)
        return
    schedule, count, ranks = SCHEDULES[plan.schedule], plan.micro_batches, plan.pp
    if schedule.keeps_busy and count < ranks:
        raise ConfigError(
            f"{schedule.title} over {ranks} pipeline stages needs at least as many micro-batches, not {count}: "
            f"pass --micro-batches {ranks}, or --schedule gpipe",
            field="--micro-batches",
        )
    if schedule.in_rounds and count % max(1, count // ranks):
        fitting = count // ranks * ranks
        raise ConfigError(
            f"{schedule.title} sends the micro-batches in equal rounds, one for every {ranks} of them: "
            f"{count} cannot be divided. Pass --micro-batches {fitting} or {fitting + ranks}, or --schedule 1f1b",
            field="--micro-batches",
        )


def _check_one_stage(plan: PlanOptions) -> None:
    if plan.micro_batches != 1:
        raise ConfigError(
            f"--micro-batches {plan.micro_batches} splits a batch over pipeline stages: pass --pp 2 or more, "
            "or use --accumulate without a pipeline",
            field="--micro-batches",
        )
    if plan.schedule != "1f1b":
        raise ConfigError(
            f"--schedule {plan.schedule} orders the micro-batches of a pipeline: pass --pp 2 or more, or leave it out",
            field="--schedule",
        )

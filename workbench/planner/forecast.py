"""What a plan will take: memory of each rank, messages, and an estimate of a step's time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core import numbers
from workbench.core.mesh import Coordinates
from workbench.planner.holdings import (
    FP32_BYTES,
    Job,
    RankMemory,
    activity_on_stage,
    memory,
    parts,
    shared_by,
)
from workbench.planner.machine import Machine
from workbench.planner.model import ModelDescription
from workbench.planner.traffic import Traffic, traffic

#: the backward pass takes as much as two forward passes
PASSES = 3


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Estimated seconds of one step on the slowest rank (NaN: not known). ``bubble``: a pipeline's stages wait for each
    other. ``communication``: the part that computation does not hide."""

    compute: float
    bubble: float
    communication: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.compute + self.bubble + self.communication + self.update


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a plan will take. ``memory``: of a rank of each pipeline stage, the replica that holds most; ``messages``:
    what it sends in a step; ``time``: None without a calibration. ``limit``: bytes that a rank has (NaN: not known)."""

    job: Job
    memory: tuple[RankMemory, ...]
    messages: tuple[tuple[Traffic, ...], ...]
    time: StepTime | None
    limit: float

    @property
    def largest(self) -> RankMemory:
        """The memory of the rank that holds most."""
        return max(self.memory, key=lambda each: each.total)

    @property
    def fits(self) -> bool:
        """Whether each rank's memory is enough; True where the limit is not known."""
        return not self.largest.total > self.limit

    @property
    def sent_bytes(self) -> float:
        """Bytes of a step's collectives, of the rank that sends most."""
        return max(sum(item.bytes for item in messages) for messages in self.messages)

    @property
    def name(self) -> str:
        """The plan in words."""
        return self.job.plan.describe()


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A plan that cannot train this model, or that the planner cannot predict (``reason``)."""

    name: str
    reason: str


def forecast(model: ModelDescription, job: Job, machine: Machine | None, limit: float) -> Forecast:
    """Compute what a plan will take. ``limit``: bytes of memory that a rank has (NaN: not known)."""
    places = [Coordinates(dp=0, pp=pp, tp=0) for pp in range(job.plan.pp)]
    messages = tuple(tuple(traffic(model, job, here)) for here in places)
    return Forecast(
        job=job,
        memory=tuple(memory(model, job, here) for here in places),
        messages=messages,
        time=None if machine is None or not model.activity else step_time(model, job, machine, messages),
        limit=limit,
    )


def step_time(model: ModelDescription, job: Job, machine: Machine, messages: Sequence[Sequence[Traffic]]) -> StepTime:
    """Estimate a step: operations at the measured rates, messages by ``Machine.message_s``, and the bubble of 1F1B,
    ``p - 1`` passes of the slowest stage (Narayanan et al. 2021, equation 1)."""
    one_pass = max(_pass_s(model, job, machine, pp) for pp in range(job.plan.pp))
    compute = one_pass * job.passes
    exposed = 0.0
    for sent in messages:
        waited = sum(_message_s(item, machine) for item in sent if not item.beside_backward)
        hidden = sum(_message_s(item, machine) for item in sent if item.beside_backward)
        backward = compute * (PASSES - 1) / PASSES if machine.overlaps else 0.0
        exposed = max(exposed, waited + max(0.0, hidden - backward))
    return StepTime(
        compute=compute,
        bubble=one_pass * (job.plan.pp - 1),
        communication=exposed,
        update=max(_update_s(model, job, machine, pp) for pp in range(job.plan.pp)),
    )


def _pass_s(model: ModelDescription, job: Job, machine: Machine, pp: int) -> float:
    """Seconds of one forward and backward pass of a stage."""
    flops = operations = moved = 0.0
    for item in activity_on_stage(model, job, pp):
        samples = job.samples / (job.plan.tp if job.split_of(item.module) is not None else shared_by(job, item.module))
        flops += item.flops * samples
        moved += item.moved_bytes * samples
        operations += item.operations
    seconds = flops / machine.flops_per_s + moved / machine.bytes_per_s + operations * machine.operation_s
    return PASSES * seconds


def _message_s(item: Traffic, machine: Machine) -> float:
    return item.calls * machine.message_s(item.kind, item.ranks, item.bytes / item.calls) if item.calls else 0.0


def _update_s(model: ModelDescription, job: Job, machine: Machine, pp: int) -> float:
    """Seconds of the optimizer: it reads the gradient, reads and writes parameter and state, and calls operators for
    each parameter."""
    held = parts(model, job, Coordinates(dp=0, pp=pp, tp=0))
    moved = calls = 0
    for part in held:
        if part.parameter.trained and part.parameter.group >= 0:
            calls += 1
            elements = part.slice_elements if job.shares.state else part.elements
            kept = next(
                (
                    tensors
                    for key, tensors in model.states.items()
                    if key.startswith(f"{part.parameter.group} {1 if job.shares.state else len(part.shape)} ")
                ),
                (),
            )
            moved += FP32_BYTES * elements * (3 + 2 * sum(bool(tensor.dims) for tensor in kept))
    return moved / machine.bytes_per_s + calls * machine.update_s


def ordered(found: Sequence[Forecast]) -> list[Forecast]:
    """The plans that fit first, by estimated time; without a time by memory; those that do not fit by memory."""

    def key(item: Forecast) -> tuple[bool, float, float]:
        time = item.time.total if item.time is not None and item.fits and math.isfinite(item.time.total) else math.inf
        return not item.fits, time, item.largest.total

    return sorted(found, key=key)


def why_first(found: Sequence[Forecast]) -> str:
    """Why the first of the ordered plans is chosen, in a sentence; "" without plans."""
    if not found:
        return ""
    first, fitting = found[0], [item for item in found if item.fits]
    needs = f"{numbers.decimal_bytes(first.largest.total)} per rank"
    if not first.fits:
        limit = numbers.decimal_bytes(first.limit)
        return f"{first.name}: no plan fits into {limit} per rank; this one needs least, {needs}."
    unknown = " (activations not counted)" if math.isnan(first.largest.activations) else ""
    fits = f"it needs {needs}{unknown}"
    if not math.isnan(first.limit):
        fits += f" of {numbers.decimal_bytes(first.limit)}"
    if len(found) == 1:
        return f"{first.name}: the only plan that can be predicted; {fits}."
    among = f"the {len(fitting)} plans that fit" if len(fitting) > 1 else "all plans"
    if len(fitting) == 1:
        return f"{first.name}: the only one of {len(found)} plans that fits; {fits}."
    if first.time is None:
        return f"{first.name}: of {among} it needs least memory; {fits}. Step times are not known."
    second = fitting[1]
    step = numbers.milliseconds(1e3 * first.time.total)
    if second.time is not None:
        step += f" (next: {second.name}, {numbers.milliseconds(1e3 * second.time.total)})"
    return f"{first.name}: of {among} it has the shortest estimated step, {step}; {fits}."

"""What a rank holds under a plan: parts of parameters, and from them bytes of parameters, gradients and state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from workbench.core import algorithms
from workbench.core.algorithms import ChosenAlgorithm
from workbench.core.config import ParallelPlan
from workbench.core.mesh import Coordinates
from workbench.core.shares import GATHERED, KEPT, WHOLE, Shares
from workbench.planner.model import (
    COLUMN,
    ROW,
    Activity,
    ModelDescription,
    Parameter,
    Split,
    Splits,
    is_within,
    state_key,
)

FP32_BYTES, HALF_BYTES = 4, 2


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one rank holds, in bytes, at the moment of a step when it is most. ``state``: of the optimizer, with the
    fp32 copies that it updates (NaN: unknown). ``activations``: kept for the backward pass (NaN: unknown).
    ``buffers``: of the model and of reductions."""

    parameters: int
    gradients: int
    state: float
    activations: float
    buffers: int

    @property
    def total(self) -> float:
        """All together, without what is not known and without the process itself."""
        known = [value for value in (self.state, self.activations) if not math.isnan(value)]
        return self.parameters + self.gradients + self.buffers + sum(known)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A plan with what the planner needs beside it: what its plugin shares, and how the training calls the model.

    ``batch_size``: samples of a global batch. ``accumulate``: gradient accumulation steps. ``precision``: fp32, bf16 or
    fp16.
    """

    plan: ParallelPlan
    shares: Shares
    splits: Splits
    batch_size: int
    accumulate: int
    precision: str

    @property
    def algorithm(self) -> ChosenAlgorithm | None:
        """What exchanges the gradients in place of an all-reduce."""
        return algorithms.chosen(self.plan.algorithm) if self.plan.algorithm else None

    @property
    def mode(self) -> str:
        """Which of ``ModelDescription.activity`` holds."""
        return "cast" if self.precision != "fp32" and self.shares.casts else "autocast"

    @property
    def samples(self) -> float:
        """Samples of one forward pass: of a piece of a replica's share, or of a micro-batch of it."""
        micro = self.plan.micro_batches if self.plan.pp > 1 else 1
        return self.batch_size / self.plan.mesh.dp / self.accumulate / micro

    @property
    def replicas(self) -> int:
        """Ranks whose gradients are reduced together: those of context parallelism hold the same weights."""
        return self.plan.mesh.dp * self.plan.cp

    @property
    def passes(self) -> int:
        """Forward passes of a rank in one step."""
        return self.accumulate * (self.plan.micro_batches if self.plan.pp > 1 else 1)

    def itemsize(self, parameter: Parameter) -> int:
        """Bytes of an element of a parameter that a rank keeps."""
        is_half = self.precision != "fp32" and self.shares.casts == KEPT
        return HALF_BYTES if is_half else parameter.itemsize

    def gathered_itemsize(self, parameter: Parameter) -> int:
        """Bytes of an element of a parameter that was gathered for a pass."""
        is_half = self.precision != "fp32" and self.shares.casts == GATHERED
        return HALF_BYTES if is_half else self.itemsize(parameter)

    @property
    def shards(self) -> int:
        """Ranks over which the replicas share out what they share."""
        return self.plan.mesh.dp // self.plan.replicate

    def stage(self, pp: int) -> tuple[str, ...] | None:
        """Modules that a pipeline stage holds; None: all of them."""
        return None if self.plan.pp == 1 else self.splits.stages[self.plan.pp][pp]

    def is_on_stage(self, module: str, pp: int) -> bool:
        """Whether a pipeline stage holds a module."""
        held = self.stage(pp)
        return held is None or any(is_within(module, outer) for outer in held)

    @cached_property
    def cuts(self) -> dict[str, Split]:
        """Name of a parameter -> the split that cuts it."""
        return {name: split for split in self.splits.tp.values() for name in split.dims}

    def split_of(self, module: str) -> tuple[str, Split] | None:
        """The module that tensor parallelism cuts and that is, or holds, ``module``; None: it is not cut."""
        if self.plan.tp == 1:
            return None
        outer = module
        while True:
            if outer in self.splits.tp:
                return outer, self.splits.tp[outer]
            if not outer:
                return None
            outer = outer.rpartition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A rank's part of a parameter: after tensor parallelism (``shape``), and after the replicas' share (``slice``)."""

    parameter: Parameter
    shape: tuple[int, ...]
    slice: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Elements of the tensor-parallel part."""
        return math.prod(self.shape)

    @property
    def slice_elements(self) -> int:
        """Elements of the replica's slice of it."""
        return math.prod(self.slice)


def parts(model: ModelDescription, job: Job, here: Coordinates) -> Iterator[Part]:
    """The parts of parameters on the rank at these coordinates, tied ones once."""
    for parameter in model.parameters:
        if job.is_on_stage(parameter.module, here.pp) or _is_tied_to(model, parameter, job, here.pp):
            shape = tensor_parallel_shape(parameter, job)
            yield Part(parameter=parameter, shape=shape, slice=replica_slice(shape, job, here.dp))


def _is_tied_to(model: ModelDescription, parameter: Parameter, job: Job, pp: int) -> bool:
    """Whether the stage holds the parameter under the name of another module, which shares it."""
    return any(job.is_on_stage(module, pp) for module in model.tied.get(parameter.name, ()))


def tensor_parallel_shape(parameter: Parameter, job: Job) -> tuple[int, ...]:
    """The shape of each tensor-parallel rank's part of a parameter."""
    split = job.cuts.get(parameter.name) if job.plan.tp > 1 else None
    if split is None:
        return parameter.shape
    shape, tp, dim = list(parameter.shape), job.plan.tp, split.dims[parameter.name]
    if split.multiple:
        unit = split.multiple * tp
        shape[dim] = -(-shape[dim] // unit) * unit
    if split.whole_unless_divided and shape[dim] % tp:
        return parameter.shape
    shape[dim] //= tp
    return tuple(shape)


def replica_slice(shape: tuple[int, ...], job: Job, dp: int) -> tuple[int, ...]:
    """What replica ``dp`` holds of something that the replicas share out: a flat slice, or rows of dim 0."""
    if not job.shares.by_rows:
        return (-(-math.prod(shape) // job.shards),)
    if not shape:
        return shape
    rows = -(-shape[0] // job.shards)
    return (max(0, min(rows, shape[0] - dp % job.shards * rows)), *shape[1:])


def memory(model: ModelDescription, job: Job, here: Coordinates) -> RankMemory:
    """What the rank at these coordinates holds."""
    shares = job.shares
    # pieces before the last one leave whole gradients where parameters are gathered
    keeps_slices = shares.gradients and not (shares.parameters and job.accumulate > 1)
    parameters = gradients = whole_gradient = 0
    held = list(parts(model, job, here))
    for part in held:
        itemsize = job.itemsize(part.parameter)
        parameters += itemsize * (part.slice_elements if shares.parameters else part.elements)
        if part.parameter.trained:
            whole_gradient += itemsize * part.elements
            gradients += itemsize * (part.slice_elements if keeps_slices else part.elements)
    buffers = model.buffer_bytes
    is_apart = job.plan.pp > 1 and shares.stages_reduce_apart
    if job.replicas > 1 and shares.bucket_bytes and not is_apart:
        buffers += whole_gradient if shares.bucket_bytes == WHOLE else min(whole_gradient, shares.bucket_bytes)
    if job.algorithm is not None and job.plan.mesh.dp > 1:
        buffers += int(job.algorithm.kept_bytes([part.shape for part in held if part.parameter.trained]))
    if shares.parameters and job.shards > 1:
        buffers += gathered_bytes(model, job, held)
    return RankMemory(
        parameters=parameters,
        gradients=gradients,
        state=state_bytes(model, job, held),
        activations=activation_bytes(model, job, here.pp),
        buffers=buffers,
    )


def gathered_bytes(model: ModelDescription, job: Job, held: Sequence[Part]) -> int:
    """Bytes of whole parameters that a rank has at once: the largest block, and what is in no block."""
    blocks: dict[str, int] = {}
    for part in held:
        block = model.block_of(part.parameter)
        blocks[block] = blocks.get(block, 0) + job.gathered_itemsize(part.parameter) * part.elements
    rest = blocks.pop("", 0)
    return rest + (sum if job.plan.no_reshard else max)(blocks.values() or [0])


def state_bytes(model: ModelDescription, job: Job, held: Sequence[Part]) -> float:
    """Bytes of the optimizer's state for these parts, with fp32 copies; NaN where the state is not known."""
    copies = job.shares.has_copies(job.precision)
    total = 0
    for part in held:
        parameter = part.parameter
        if parameter.group < 0 or not parameter.trained:
            continue
        shape = part.slice if job.shares.state else part.shape
        itemsize = FP32_BYTES if copies else job.itemsize(parameter)
        kept = model.states.get(state_key(parameter.group, len(shape), itemsize))
        if kept is None:
            return math.nan
        total += sum(tensor.bytes_for(shape) for tensor in kept)
        total += FP32_BYTES * math.prod(shape) if copies else 0
    return total


def activation_bytes(model: ModelDescription, job: Job, pp: int) -> float:
    """Bytes that a rank of this pipeline stage keeps for the backward pass; NaN where they are not known.

    Under 1F1B stage ``s`` of ``p`` keeps those of ``min(micro-batches, p - s)`` micro-batches (Narayanan et al. 2021,
    section 2.2). Between a column-split and a row-split layer a tensor-parallel rank keeps its share (Korthikanti et
    al. 2022, section 4). A context-parallel rank keeps its positions, and the keys and values of all.
    """
    if not model.activity:
        return math.nan
    held = activity_on_stage(model, job, pp)
    once = sum((item.saved_fixed + item.saved_per_sample * job.samples) / shared_by(job, item.module) for item in held)
    shared = job.splits.sequences
    if shared is not None and job.plan.cp > 1:
        of_others = 1 - 1 / job.plan.cp
        once += sum(item.output_bytes * shared.keys.get(item.module, 0) for item in held) * of_others * job.samples
    in_flight = min(job.plan.micro_batches, job.plan.pp - pp) if job.plan.pp > 1 else 1
    return once * in_flight


def activity_on_stage(model: ModelDescription, job: Job, pp: int) -> list[Activity]:
    """What the modules of a stage do. What no stage holds, such as the loss, is done on the last one."""
    items = model.activity[job.mode]
    if job.plan.pp == 1:
        return list(items)
    stages = range(job.plan.pp)
    is_last = pp == job.plan.pp - 1
    return [
        item
        for item in items
        if job.is_on_stage(item.module, pp)
        or (is_last and not any(job.is_on_stage(item.module, stage) for stage in stages))
    ]


def shared_by(job: Job, module: str) -> int:
    """Over how many ranks is cut what a module keeps: its heads or features, or the positions of its sequences."""
    shared = job.splits.sequences
    if job.plan.cp > 1 and shared is not None and is_within(module, shared.body):
        return job.plan.cp
    return job.plan.tp if is_split(job, module) else 1


def is_split(job: Job, module: str) -> bool:
    """Whether what a module keeps is cut over the tensor-parallel ranks: the input of a row-split layer, and what lies
    between column-split and row-split ones."""
    if job.plan.tp == 1:
        return False
    found = job.split_of(module)
    if found is not None:
        return found[1].kind == ROW
    parents = {module, module.rpartition(".")[0]} - {""}
    return any(split.kind == COLUMN and name.rpartition(".")[0] in parents for name, split in job.splits.tp.items())

"""What a rank sends in one step under a plan, in bytes per collective, from closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.core.algorithms import ChosenAlgorithm
from workbench.core.mesh import Coordinates
from workbench.planner.holdings import Job, Part, activity_on_stage, parts
from workbench.planner.model import (
    COLUMN,
    HEAD,
    ROW,
    VOCABULARY,
    Activity,
    ModelDescription,
    SharedSequences,
    is_within,
)

#: DistributedDataParallel's default size of a bucket
_BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Collectives of one kind over one axis of the mesh ("dp", "tp", "pp", "cp"), or over all ranks ("world"), in one
    step of one rank.

    ``calls``: how many, on average; ``bytes``: of all of them, counted as ``CollectiveRecord.bytes``.
    ``beside_backward``: they can run while the backward pass goes on.
    """

    kind: str
    axis: str
    ranks: int
    calls: float
    bytes: float
    beside_backward: bool = False


def traffic(model: ModelDescription, job: Job, here: Coordinates) -> list[Traffic]:
    """What the rank at these coordinates sends in a step; what is smaller than 1 kB (norms, flags) is left out."""
    found = [*_of_replicas(model, job, here)]
    if job.plan.tp > 1 and model.activity:
        found += _of_tensor_parallel(model, job, here)
    if job.plan.pp > 1 and model.activity:
        found += _of_stages(model, job, here)
    if job.plan.cp > 1 and model.activity and job.splits.sequences is not None:
        found += _of_sequences(model, job, job.splits.sequences)
    return [item for item in found if item.bytes]


def _of_replicas(model: ModelDescription, job: Job, here: Coordinates) -> Iterator[Traffic]:
    """Gradients are reduced once a step, whatever is accumulated; parts of parameters are gathered."""
    dp, shares = job.replicas, job.shares
    if dp == 1:
        return
    held = list(parts(model, job, here))
    trained = [part for part in held if part.parameter.trained]
    # of gathered halves the gradients are reduced in fp32
    reduced = sum(job.itemsize(part.parameter) * _padded(part, job) for part in trained)
    is_apart = job.plan.pp > 1 and shares.stages_reduce_apart
    buckets = len(trained) if is_apart else max(1, -(-reduced // _BUCKET_BYTES))
    if shares.parameters:
        yield from _of_gathered(model, job, held, reduced)
        return
    if job.algorithm is not None:
        yield _of_algorithm(job.algorithm, [part.shape for part in trained], dp, buckets)
        return
    reductions = job.passes if shares.gradients else 1  # a slice takes no whole gradient to add to
    yield Traffic(
        kind="reduce_scatter" if shares.gradients else "all_reduce",
        axis="dp" if job.plan.cp == 1 else "cp" if job.plan.mesh.dp == 1 else "world",
        ranks=dp,
        calls=buckets * reductions,
        bytes=reduced * reductions,
        beside_backward=job.plan.pp == 1,
    )
    if shares.gathers:
        yield Traffic(
            kind="all_gather", axis="dp", ranks=dp, calls=buckets * shares.gathers, bytes=reduced * shares.gathers
        )


def _of_algorithm(chosen: ChosenAlgorithm, shapes: list[tuple[int, ...]], dp: int, buckets: int) -> Traffic:
    kind = chosen.algorithm.collective
    return Traffic(
        kind=kind,
        axis="dp",
        ranks=dp,
        calls=chosen.calls(buckets),
        bytes=chosen.message_bytes(shapes) * (dp if kind == "all_gather" else 1),
        beside_backward=not chosen.is_local and chosen.algorithm.rounds == 1,
    )


def _of_gathered(model: ModelDescription, job: Job, held: Sequence[Part], reduced: int) -> Iterator[Traffic]:
    """Each pass gathers every block, and again for the backward pass; what is in no block is kept in between. Gradients
    are reduced in the last pass, and over the groups that hold the same shards."""
    blocks = len({model.block_of(part.parameter) for part in held})
    gathered = 0
    for part in held:
        times = 2 if model.block_of(part.parameter) and not job.plan.no_reshard else 1
        gathered += times * job.gathered_itemsize(part.parameter) * _padded(part, job)
    if job.shards > 1:
        yield Traffic(
            kind="all_gather",
            axis="dp",
            ranks=job.shards,
            calls=2 * blocks * job.passes,
            bytes=gathered * job.passes,
        )
        yield Traffic(
            kind="reduce_scatter", axis="dp", ranks=job.shards, calls=blocks, bytes=reduced, beside_backward=True
        )
    if job.plan.replicate > 1:
        yield Traffic(
            kind="all_reduce",
            axis="dp",
            ranks=job.plan.replicate,
            calls=blocks,
            bytes=reduced / job.shards,
            beside_backward=True,
        )


def _padded(part: Part, job: Job) -> int:
    """Elements of a whole parameter that is cut into equal parts, as it is sent."""
    if not (job.shares.state or job.shares.parameters):
        return part.elements
    if job.shares.by_rows and part.shape:
        return job.shards * -(-part.shape[0] // job.shards) * math.prod(part.shape[1:])
    return job.shards * -(-part.elements // job.shards)


def _of_tensor_parallel(model: ModelDescription, job: Job, here: Coordinates) -> Iterator[Traffic]:
    """Per forward pass: outputs of row-split layers and of the embedding are summed, whole logits are gathered; in the
    backward pass the gradients of the inputs of column-split layers are summed (Shoeybi et al. 2019, section 3)."""
    tp = job.plan.tp
    summed = gathered = 0.0
    sums = gathers = 0
    for item in activity_on_stage(model, job, here.pp):
        split = job.splits.tp.get(item.module)
        if split is None:
            continue
        if split.kind in (ROW, VOCABULARY):
            summed += item.output_bytes
            sums += 1
        if split.kind in (COLUMN, HEAD) and item.input_trains:
            summed += item.input_bytes
            sums += 1
        if split.kind == HEAD:
            gathered += item.output_bytes * _padding(model, job, item)
            gathers += 1
    times = job.passes
    yield Traffic(kind="all_reduce", axis="tp", ranks=tp, calls=sums * times, bytes=summed * job.samples * times)
    yield Traffic(kind="all_gather", axis="tp", ranks=tp, calls=gathers * times, bytes=gathered * job.samples * times)


def _of_sequences(model: ModelDescription, job: Job, shared: SharedSequences) -> Iterator[Traffic]:
    """Per forward pass each attention gathers keys and values, and the outputs of the body are gathered; the backward
    pass sums the gradients of keys and values (Grattafiori et al. 2024, section 3.3.2)."""
    cp, outputs = job.plan.cp, {item.module: item.output_bytes for item in model.activity[job.mode]}
    keys = sum(outputs.get(module, 0.0) * share for module, share in shared.keys.items())
    attentions = len({module.rpartition(".")[0] for module in shared.keys})
    times, samples = job.passes, job.samples * job.passes
    gathered = (keys + outputs.get(shared.last, 0.0)) * samples
    yield Traffic(kind="all_gather", axis="cp", ranks=cp, calls=(attentions + 1) * times, bytes=gathered)
    yield Traffic(kind="reduce_scatter", axis="cp", ranks=cp, calls=attentions * times, bytes=keys * samples)


def _padding(model: ModelDescription, job: Job, head: Activity) -> float:
    """By how much the padding makes the outputs of a head larger."""
    split = job.splits.tp[head.module]
    sizes = [
        parameter.shape[split.dims[parameter.name]] for parameter in model.parameters if parameter.name in split.dims
    ]
    if not sizes or not split.multiple:
        return 1.0
    unit = split.multiple * job.plan.tp
    return -(-sizes[0] // unit) * unit / sizes[0]


def _of_stages(model: ModelDescription, job: Job, here: Coordinates) -> Iterator[Traffic]:
    """Each micro-batch sends its hidden states to the next stage and their gradient back; stages that share a tied
    parameter sum its gradient."""
    pp, times = job.plan.pp, job.passes
    onward = boundary_bytes(model, job, here.pp) if here.pp < pp - 1 else 0.0
    back = boundary_bytes(model, job, here.pp - 1) if here.pp else 0.0
    calls = times * ((here.pp < pp - 1) + (here.pp > 0))
    sent = (onward + back) * job.samples * times
    yield Traffic(kind="send", axis="pp", ranks=pp, calls=calls, bytes=sent)
    yield Traffic(kind="recv", axis="pp", ranks=pp, calls=calls, bytes=sent)
    tied = [part for part in parts(model, job, here) if len(_stages_of(model, job, part.parameter.name)) > 1]
    shared = sum(job.itemsize(part.parameter) * part.elements for part in tied if part.parameter.trained)
    yield Traffic(kind="all_reduce", axis="pp", ranks=2, calls=len(tied), bytes=shared)


def _stages_of(model: ModelDescription, job: Job, name: str) -> list[int]:
    module = next(parameter.module for parameter in model.parameters if parameter.name == name)
    modules = (module, *model.tied.get(name, ()))
    return [pp for pp in range(job.plan.pp) if any(job.is_on_stage(each, pp) for each in modules)]


def boundary_bytes(model: ModelDescription, job: Job, pp: int) -> float:
    """Bytes per sample that stage ``pp`` gives to the next one: the outputs of the last module that it holds."""
    outputs = {item.module: item.output_bytes for item in model.activity[job.mode]}
    for outer in reversed(job.stage(pp) or ()):
        if outputs.get(outer):
            return outputs[outer]
        within = [size for module, size in outputs.items() if is_within(module, outer) and size]
        if within:
            return within[-1]
    return 0.0

"""The algorithms of this project, and what each rank sends under them. Imports no tensor library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from workbench.core.algorithms import ActsOn, Algorithm, Feedback, MessageBytes, Number

_ROOM = "workbench.engine.communication"
#: bytes of a float32 or of an index
_WORD = 4


def kept(elements: int, share: float) -> int:
    """How many elements of a gradient a share of it is: at least one."""
    return max(1, round(elements * share))


def _each(message: Callable[[int, float], int]) -> MessageBytes:
    """The sum over gradients of what is sent of one with so many elements."""
    return lambda shapes, number: sum(message(math.prod(shape), number) for shape in shapes)


def is_low_rank(shape: Sequence[int], rank: float) -> bool:
    """Whether two matrices of that rank are smaller than a gradient of this shape."""
    rows = shape[0] if shape else 1
    columns = math.prod(shape[1:])
    return len(shape) > 1 and rank * (rows + columns) < rows * columns


def _factors(shapes: Sequence[tuple[int, ...]], rank: float) -> int:
    words = 0
    for shape in shapes:
        if is_low_rank(shape, rank):
            words += int(rank) * (shape[0] + math.prod(shape[1:]))
        else:
            words += math.prod(shape)
    return _WORD * words


def _right_factors(shapes: Sequence[tuple[int, ...]], rank: float) -> int:
    return _WORD * sum(int(rank) * math.prod(shape[1:]) for shape in shapes if is_low_rank(shape, rank))


_SHARE = Number(title="the share of elements that is sent", default=0.01, least=1e-6, most=1.0)

FP16 = Algorithm(
    name="fp16",
    summary="gradients are summed in fp16",
    paper="Micikevicius et al., Mixed Precision Training, arXiv 1710.03740: half of the bytes, the same accuracy",
    code=f"{_ROOM}.cast:Fp16",
    collective="all_reduce",
    message_bytes=_each(lambda elements, _: 2 * elements),
)
BF16 = Algorithm(
    name="bf16",
    summary="gradients are summed in bf16",
    paper="Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, arXiv 1905.12322: the range of fp32",
    code=f"{_ROOM}.cast:Bf16",
    collective="all_reduce",
    message_bytes=_each(lambda elements, _: 2 * elements),
)
INT8 = Algorithm(
    name="int8",
    summary="8 bits an element, one scale for each gradient, rounded up or down at random",
    paper="Alistarh et al., QSGD, arXiv 1610.02132: unbiased, so SGD converges",
    code=f"{_ROOM}.quantize:Int8",
    collective="all_gather",
    message_bytes=_each(lambda elements, _: elements + _WORD),
)
INT4 = Algorithm(
    name="int4",
    summary="4 bits an element, one scale for each gradient, rounded up or down at random",
    paper="Alistarh et al., QSGD, arXiv 1610.02132: unbiased, so SGD converges",
    code=f"{_ROOM}.quantize:Int4",
    collective="all_gather",
    message_bytes=_each(lambda elements, _: -(-elements // 2) + _WORD),
)
TERNGRAD = Algorithm(
    name="terngrad",
    summary="each element is -1, 0 or 1 times the largest, at random",
    paper="Wen et al., TernGrad, arXiv 1705.07878: 2 bits an element, unbiased (without its clipping here)",
    code=f"{_ROOM}.quantize:TernGrad",
    collective="all_gather",
    message_bytes=_each(lambda elements, _: -(-elements // 4) + _WORD),
)
TOPK = Algorithm(
    name="topk",
    summary="the largest elements of each gradient",
    paper="Stich et al., Sparsified SGD with Memory, arXiv 1809.07599: with error feedback the rate of SGD",
    code=f"{_ROOM}.sparsify:TopK",
    number=_SHARE,
    collective="all_gather",
    message_bytes=_each(lambda elements, share: 2 * _WORD * kept(elements, share)),
)
RANDOMK = Algorithm(
    name="randomk",
    summary="elements of each gradient that all ranks draw alike",
    paper="Stich et al., Sparsified SGD with Memory, arXiv 1809.07599: with error feedback the rate of SGD",
    code=f"{_ROOM}.sparsify:RandomK",
    number=_SHARE,
    collective="all_reduce",
    message_bytes=_each(lambda elements, share: _WORD * kept(elements, share)),
)
SIGN = Algorithm(
    name="sign",
    summary="the signs of each gradient, times the mean of its magnitudes",
    paper="Karimireddy et al., Error Feedback Fixes SignSGD, arXiv 1901.09847: with it, 1 bit reaches SGD's rate",
    code=f"{_ROOM}.sign:ScaledSign",
    collective="all_gather",
    message_bytes=_each(lambda elements, _: -(-elements // 8) + _WORD),
)
SIGNSGD = Algorithm(
    name="signsgd",
    summary="the sign that most ranks have: an update of -lr or +lr under SGD",
    paper="Bernstein et al., signSGD, arXiv 1802.04434: majority vote, 1 bit an element both ways",
    code=f"{_ROOM}.sign:MajorityVote",
    feedback=Feedback.NEVER,
    collective="all_gather",
    message_bytes=_each(lambda elements, _: -(-elements // 8) + _WORD),
)
POWERSGD = Algorithm(
    name="powersgd",
    summary="two matrices of low rank for each gradient, by one step of a power iteration; error feedback always",
    paper="Vogels et al., PowerSGD, arXiv 1905.13727: rank 2 or 4 keeps the accuracy of SGD",
    code=f"{_ROOM}.powersgd:PowerSgd",
    number=Number(title="the rank", default=4, least=1, whole=True),
    feedback=Feedback.ALWAYS,
    collective="all_reduce",
    rounds=2,
    message_bytes=_factors,
    kept_bytes=_right_factors,
)


def _whole_every(shapes: Sequence[tuple[int, ...]], steps: float) -> float:
    """All weights, once in so many steps."""
    return _WORD * sum(math.prod(shape) for shape in shapes) / steps


def _copies(number: int) -> MessageBytes:
    return lambda shapes, _: number * _WORD * sum(math.prod(shape) for shape in shapes)


def _one_in(steps: float, settings: Mapping[str, float]) -> float:
    return 1 / steps


_OUTER = {
    "lr": Number(title="the outer learning rate", default=0.7, least=0.0),
    "momentum": Number(title="the outer momentum", default=0.9, least=0.0, most=1.0),
}


def _every(default: float) -> Number:
    return Number(title="the number of steps between synchronisations", default=default, least=1, whole=True)


LOCAL_SGD = Algorithm(
    name="local-sgd",
    summary="weights, averaged every so many steps, which ranks make by themselves",
    paper="Stich, Local SGD Converges Fast and Communicates Little, arXiv 1805.09767: SGD's rate with fewer rounds",
    code=f"{_ROOM}.local_sgd:LocalSgd",
    acts_on=ActsOn.WEIGHTS,
    number=_every(8),
    feedback=Feedback.NEVER,
    collective="all_reduce",
    exchanges=_one_in,
    message_bytes=_whole_every,
)
POST_LOCAL_SGD = Algorithm(
    name="post-local-sgd",
    summary="whole gradients for the first steps (after=), then as local-sgd (whose bytes these are)",
    paper="Lin et al., Don't Use Large Mini-Batches, Use Local SGD, arXiv 1808.07217: generalises better than large "
    "batches",
    code=f"{_ROOM}.local_sgd:PostLocalSgd",
    acts_on=ActsOn.WEIGHTS,
    number=_every(8),
    settings={"after": Number(title="the number of the first steps", default=100, least=0, whole=True)},
    feedback=Feedback.NEVER,
    collective="all_reduce",
    exchanges=_one_in,
    message_bytes=_whole_every,
)
DILOCO = Algorithm(
    name="diloco",
    summary="outer gradients (what weights changed by), averaged every so many steps, for a step of Nesterov momentum",
    paper="Douillard et al., DiLoCo, arXiv 2311.08105: as good as synchronous training with 500 times fewer rounds",
    code=f"{_ROOM}.diloco:DiLoCo",
    acts_on=ActsOn.WEIGHTS,
    number=_every(50),
    settings=_OUTER,
    feedback=Feedback.NEVER,
    collective="all_reduce",
    exchanges=_one_in,
    message_bytes=_whole_every,
    kept_bytes=_copies(2),
)
STREAMING_DILOCO = Algorithm(
    name="streaming-diloco",
    summary="as diloco, of one fragment of the weights after another (fragments=), evenly over the steps",
    paper="Douillard et al., Streaming DiLoCo, arXiv 2501.18512: the same quality, a fraction of the peak bandwidth "
    "(without its overlap and its 4 bits here)",
    code=f"{_ROOM}.diloco:StreamingDiLoCo",
    acts_on=ActsOn.WEIGHTS,
    number=_every(50),
    settings={**_OUTER, "fragments": Number(title="the number of fragments", default=4, least=1, whole=True)},
    feedback=Feedback.NEVER,
    collective="all_reduce",
    exchanges=lambda steps, settings: min(1.0, settings["fragments"] / steps),
    message_bytes=_whole_every,
    kept_bytes=_copies(2),
)
SPARTA = Algorithm(
    name="sparta",
    summary="weights of some elements, which all ranks draw alike in every step, averaged",
    paper="Beton et al., Sparse Parameter Averaging (SPARTA), OpenReview stFPf3gzq1: 0.1 % of the parameters in each "
    "step keep replicas together",
    code=f"{_ROOM}.local_sgd:Sparta",
    acts_on=ActsOn.WEIGHTS,
    number=Number(title="the share of elements that is averaged in a step", default=0.005, least=1e-6, most=1.0),
    feedback=Feedback.NEVER,
    collective="all_reduce",
    message_bytes=_each(lambda elements, share: _WORD * kept(elements, share)),
)

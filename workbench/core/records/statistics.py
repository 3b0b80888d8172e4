"""Statistics of what is inside a model, as sums over one rank's part: readers combine the shards exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientStats:
    """Sums over one rank's part of one layer's gradient: what a reader needs to combine shards exactly.

    ``scope`` is "local" (this data-parallel rank's own batch share, before reduction; loss scale removed) or "reduced"
    (averaged over data-parallel ranks, before clipping); "slice" is the local gradient over that slice of the elements
    which this rank has of the reduced one (ZeRO-2), for ``dot`` alone. ``layer`` is the qualified name of the module
    that owns the parameters in the user's own model ("" for parameters of the root). ``sharded`` names the mesh axes
    over which the elements counted here are split ("", "tp", "dp", "dp+tp"); along every other axis of the layer's
    ranks the same numbers are replicated. ``telemetry.gradients.combine`` turns rows into norm, max_abs, mean and more.
    ``sum``, ``sum_sq`` and ``max_abs`` are over finite elements. ``dot`` (scope "local") is the inner product with the
    reduced gradient over the same elements, NaN where it is not known; ``dot_kind`` says how it was had: "" (unknown),
    "exact", "sampled" (estimated from some coordinates), "slice" (over the rank's own slice only). ``underflow_count``
    counts the elements that are not zero but, with the loss scale still in them, smaller than the smallest normal
    number of the training's precision (2**-14 in fp16, 2**-126 otherwise). Where only the norm was taken, ``sum`` and
    ``max_abs`` are NaN and counts -1; a norm over non-finite elements is then not finite itself.
    """

    step: int
    rank: int
    layer: str
    scope: str
    sharded: str
    numel: int
    sum: float
    sum_sq: float
    max_abs: float
    zero_count: int
    nonfinite_count: int
    dot: float = math.nan
    dot_kind: str = ""
    underflow_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorms:
    """L2 norms of one rank's parts of all layers' gradients at one step, where no other statistics were taken.

    ``scope`` as in ``GradientStats``: "reduced" at every step, "local" at an interval. ``norms`` are in the order of
    the parts that this rank's event ``layers`` with the number ``layout`` lists.
    ``telemetry.layer_norms.expand`` makes rows of ``GradientStats`` of them.
    """

    step: int
    rank: int
    scope: str
    layout: int
    norms: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramStats:
    """How the magnitudes of one rank's part of a layer's gradient are spread.

    ``counts[i]`` elements have a magnitude in [2**(first_exponent + i), 2**(first_exponent + i + 1)); buckets are the
    same in every run. The bucket of 2**-127 (loss scale still in them) holds whatever is smaller as well. Zeros and
    non-finite elements are in ``zero_count`` and ``nonfinite_count``. With ``sampled``, ``counts`` and
    ``underflow_count`` are estimated from about 2,048 elements of each parameter; all other counts are exact. The rest
    as in ``GradientStats``.
    """

    step: int
    rank: int
    layer: str
    scope: str
    sharded: str
    first_exponent: int
    counts: list[int]
    zero_count: int
    nonfinite_count: int
    underflow_count: int
    sampled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSketch:
    """Some elements of one rank's part of a layer's local gradient, at the same random places on every replica.

    ``values`` are multiplied so that the inner product of two replicas' sketches estimates that of their gradients:
    what pairwise similarity is computed from where it does not follow from norms. Only with four replicas and more.
    """

    step: int
    rank: int
    layer: str
    sharded: str
    values: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStats:
    """Sums of squares over one rank's part of one layer after an optimizer step: its weights (the fp32 masters where
    there are such), their update (new minus old) and the optimizer's two moments (NaN where it has none). ``sharded``
    as in ``GradientStats``."""

    step: int
    rank: int
    layer: str
    sharded: str
    numel: int
    weight_sq: float
    update_sq: float
    moment1_sq: float
    moment2_sq: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationStats:
    """Sums over one rank's part of a module's output at one step, or of the gradient of that output.

    ``layer`` is the module's qualified name in the user's own model. ``what`` is "output", or "gradient": that of the
    loss of the *global* batch with respect to the output (loss scale removed), so that rows of all ranks add up.
    ``micro_batch`` counts from 0; -1 where the row is of the whole step. ``sharded``: "tp" where the elements are split
    over the tensor-parallel ranks, "" where each of them has all. The other columns as in ``GradientStats``, and
    ``overflow_count``: finite elements of at least 1/16 of the largest number of the training's precision (2**12 in
    fp16, 2**124 otherwise); like ``underflow_count`` with the loss scale still in them, and both estimated from about
    2,048 elements of each output where the interval is automatic. ``telemetry.inside.activations`` combines rows.
    """

    step: int
    rank: int
    layer: str
    what: str
    micro_batch: int
    sharded: str
    numel: int
    sum: float
    sum_sq: float
    max_abs: float
    zero_count: int
    nonfinite_count: int
    underflow_count: int
    overflow_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionStats:
    """Attention probabilities of some ``queries`` (at most 16 positions of each head and sample) of one rank's part.

    ``layer``: the module that computes the attention. ``entropy_sum``: of the queries' entropies in nats;
    ``uniform_sum``: what it would be if each query attended to all keys that its mask allows alike. ``max_logit``: the
    largest product of a query and a key, scaled, before the softmax. ``micro_batch`` and ``sharded`` (the heads) as in
    ``ActivationStats``.
    """

    step: int
    rank: int
    layer: str
    micro_batch: int
    sharded: str
    queries: int
    entropy_sum: float
    uniform_sum: float
    max_logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStats:
    """What a router of experts chose for one rank's ``tokens``.

    ``load[i]`` of the tokens' choices fell on expert i (``top_k`` of each token); ``entropy_sum`` is that of the
    tokens' probabilities over the experts, in nats. ``layer``: the module that gives the router's logits.
    ``micro_batch`` as in ``ActivationStats``.
    """

    step: int
    rank: int
    layer: str
    micro_batch: int
    tokens: int
    top_k: int
    load: list[int]
    entropy_sum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralStats:
    """Of the whole of one weight, as a matrix, after an optimizer step: the square of its Frobenius norm, and its
    largest singular value by a power iteration, which comes from below.

    ``layer``: the module that owns it, followed by the parameter's name unless that is "weight". A weight with more
    than two dimensions counts as a matrix of the first by all others. Ranks that hold parts of it log the same.
    """

    step: int
    rank: int
    layer: str
    weight_sq: float
    sigma_max: float

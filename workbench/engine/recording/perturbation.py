"""Rounding errors made visible: gradients computed with weights that are off by about a rounding error each.

By backward error analysis, a computed sum is the exact one of terms that are a little off: n terms in another order are
those with relative errors of at most n u, and typically sqrt(n) u, where u is the unit roundoff of the precision
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2; Higham and Mary, SIAM J. Sci. Comput. 41,
2019). So a training with perturbed weights differs from the unperturbed one about as much as one whose sums are
computed in another order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.containers import arrays_in

#: unit roundoff: half the distance between 1 and the next number
ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
_OF_PRECISION = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TF32 = 2.0**-11


def relative_size(model: torch.nn.Module, batch: Batch, precision: str) -> float:
    """The relative error of a sum in another order: sqrt(n) u of fp32, and at least u of the run's ``precision``.

    n is the largest number of terms that are likely to be added up: inputs of a unit, or positions of the batch.
    """
    inputs = [math.prod(parameter.shape[1:]) for parameter in model.parameters()]
    terms = max([*inputs, *(math.prod(array.shape) for _, array in arrays_in(contents(batch)))], default=1)
    single = ROUNDOFF[torch.float32]
    if next(model.parameters()).device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        single = _TF32
    return max(math.sqrt(terms) * single, ROUNDOFF[_OF_PRECISION[precision]])


@contextmanager
def perturbed(model: torch.nn.Module, size: float, seed: int, *, restore: bool) -> Iterator[None]:
    """While entered, each trained weight w is w (1 + e) or w (1 - e), e being ``size`` or the roundoff of its type.

    ``restore``: the weights are afterwards as before. The same signs on every rank, by ``seed``; no generator of torch
    is touched."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [weight.detach().clone() for weight in weights] if restore else []
    with torch.no_grad():
        for turn, weight in enumerate(weights):
            draw = torch.Generator(device=weight.device).manual_seed(seed * 1_000_003 + turn)
            up = torch.empty(weight.shape, device=weight.device).bernoulli_(0.5, generator=draw)
            error = max(size, ROUNDOFF.get(weight.dtype, 0.0))
            weight.mul_((1 + error * (2 * up - 1)).to(weight.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, whole in zip(weights, before, strict=False):
                weight.copy_(whole)

"""Differences of two trainings, by step and tensor, and how large they may be.

The difference of a gradient is ``|plan - reference| / |reference|`` (L2 norms over the recorded elements), where the
norm of a gradient counts at least ``SMALL`` times the root mean square of all gradients of that step: what is 0 but for
rounding is no measure. The difference of a weight is ``|plan - reference| / |reference|`` over those elements whose
gradient was at no step within its tolerance of 0: optimizers such as Adam turn the sign of a rounding error into a
whole step.

The tolerance of a tensor at a step is ``FACTOR`` times its spread: the largest difference up to that step between the
reference and the same training in the plan's precision, with weights that are perturbed by a rounding error at each
step (``engine.recording.perturbation``). So it follows from the precision, from the model, and grows with the steps as
errors do in this training. The spread counts at least as much as the median of all tensors, and as the perturbation
itself. A tensor whose spread exceeds ``NOISE`` is rounding error only, such as the gradient of a key's bias in
attention, which is 0 in exact arithmetic: it is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from workbench.verification.training import Training

FACTOR = 10.0
SMALL = 1e-4
NOISE = 0.1


def gradient_differences(one: Training, reference: Training, steps: int) -> np.ndarray:
    """How far the gradients of ``one`` are from those of ``reference``: [steps, tensors], from the first step on.
    ``inf``: only one of them is finite."""
    found = []
    for step in range(1, steps + 1):
        right = {name: reference.whole("gradient", name, step) for name in reference.names}
        floor = _floor(right.values())
        found.append([relative(one.whole("gradient", name, step), values, floor) for name, values in right.items()])
    return np.array(found, dtype=float).reshape(steps, len(reference.names))


def weight_differences(one: Training, reference: Training, allowed: np.ndarray) -> np.ndarray:
    """How far the weights are: [steps + 1, tensors], from before the first step on. ``allowed``: the tolerances of the
    gradients [steps, tensors]."""
    names = reference.names
    compared = {name: np.ones(reference.lengths[name], dtype=bool) for name in names}
    found = []
    for step in range(len(allowed) + 1):
        if step:
            _leave_out_noise(compared, one, reference, step, dict(zip(names, allowed[step - 1], strict=True)))
        mine, right = (
            [each.whole("weight", name, step)[compared[name]] for name in names] for each in (one, reference)
        )
        found.append([relative(*pair) for pair in zip(mine, right, strict=True)])
    return np.array(found, dtype=float).reshape(len(allowed) + 1, len(names))


def _leave_out_noise(
    compared: dict[str, np.ndarray], one: Training, reference: Training, step: int, allowed: dict[str, float]
) -> None:
    """Leave out elements whose gradient is within the tolerance of 0, unless it is exactly 0 in both trainings."""
    right = {name: reference.whole("gradient", name, step) for name in reference.names}
    floor = _floor(right.values())
    for name, values in right.items():
        least = allowed[name] * max(_root_mean_square([values]), floor)
        both_zero = (values == 0.0) & (one.whole("gradient", name, step) == 0.0)
        compared[name] &= both_zero | (np.abs(values) > least)


def _floor(gradients: Iterable[np.ndarray]) -> float:
    return SMALL * _root_mean_square(gradients)


def _root_mean_square(vectors: Iterable[np.ndarray]) -> float:
    every = np.concatenate([np.zeros(0), *vectors])
    every = every[np.isfinite(every)]
    return float(np.sqrt(np.mean(np.square(every)))) if every.size else 0.0


def relative(values: np.ndarray, right: np.ndarray, floor: float = 0.0) -> float:
    """``|values - right| / |right|``, the norm of ``right`` counting at least as if each element were ``floor``."""
    if not np.isfinite(values).all() or not np.isfinite(right).all():
        return 0.0 if np.array_equal(values, right, equal_nan=True) else float("inf")
    difference = float(np.linalg.norm(values - right))
    norm = max(float(np.linalg.norm(right)), floor * right.size**0.5)
    return 0.0 if difference == 0.0 else float("inf") if norm == 0.0 else difference / norm


def tolerance(spread: np.ndarray, perturbation: float) -> np.ndarray:
    """The tolerance for each entry of a spread [steps, tensors]; ``inf`` where a tensor is not judged."""
    if not spread.size:
        return spread
    grown = np.maximum.accumulate(spread, axis=0)
    median = np.median(grown, axis=1, keepdims=True)
    allowed = FACTOR * np.maximum(np.maximum(grown, median), perturbation)
    noise = np.isinf(grown) | (grown > max(NOISE, FACTOR * float(np.median(grown))))
    return np.where(noise, np.inf, allowed)


def loss_tolerance(losses: np.ndarray, perturbed: np.ndarray, perturbation: float) -> np.ndarray:
    """As ``tolerance``, of the loss: absolute, by step, and at least two perturbations, or two rounding errors, of the
    loss itself."""
    spread = np.maximum.accumulate(np.nan_to_num(np.abs(perturbed - losses)))
    return np.maximum(FACTOR * spread, 2 * max(perturbation, roundoff_of(losses)) * np.abs(losses))


def roundoff_of(losses: np.ndarray) -> float:
    """The unit roundoff of the type that losses were computed in: of bf16 or fp16 where all of them are numbers of that
    type, as a cell may compute its loss so; else 0."""
    fractions, _ = np.frexp(losses[np.isfinite(losses)])
    for bits in (8, 11):
        if fractions.size and (np.ldexp(fractions, bits) % 1 == 0).all():
            return float(2.0**-bits)
    return 0.0

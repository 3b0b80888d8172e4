"""Patterns that errors of parallelism leave in gradients and weights, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.core.mesh import AXES
from workbench.verification.evidence import Evidence, factor, listed

#: factors that are told apart
_ALIKE = 1e-2
#: axes over which gradients are reduced
_REDUCED = ("tp", "cp", "dp")


def of_gradients(evidence: Evidence) -> list[str]:
    """What the gradients that differ have in common."""
    names = list(evidence.gradients)
    found, explained = _unreduced(evidence)
    names = [name for name in names if name not in explained]
    by_factor: dict[float, list[str]] = {}
    for name in sorted(names, key=lambda each: evidence.reference.sizes[each] == 1):
        c = factor(*_pair(evidence, name), evidence.tolerance("gradient", name))
        if c is not None:
            key = next((known for known in by_factor if abs(known - c) <= _ALIKE * max(1.0, abs(c))), c)
            if key in by_factor or evidence.reference.sizes[name] > 1:  # any number is a multiple of any other
                by_factor.setdefault(key, []).append(name)
    for c, scaled in by_factor.items():
        found.append(_scaled(evidence, c, scaled))
    rest = [name for name in names if not any(name in scaled for scaled in by_factor.values())]
    mixed = [name for name in rest if _is_permuted(*_pair(evidence, name), evidence.tolerance("gradient", name))]
    if mixed:
        found.append(f"the gradient of {listed(mixed)} has the right elements in another order: shards are mixed up")
    return found + _of_ranks(evidence, "gradient", [name for name in rest if name not in mixed])


def _pair(evidence: Evidence, name: str) -> tuple[np.ndarray, np.ndarray]:
    return evidence.plan.whole("gradient", name, evidence.step), evidence.right("gradient", name)


def _unreduced(evidence: Evidence) -> tuple[list[str], set[str]]:
    """Gradients of which ranks that should hold the same hold parts: their sum or mean is right. With the names."""
    found: dict[str, list[str]] = {}
    apart: list[str] = []
    for name in evidence.gradients:
        texts = [_partial(evidence, name, axis) for axis in _REDUCED if getattr(evidence.plan.mesh, axis) > 1]
        text = next((text for text in texts if text), "")
        if text:
            found.setdefault(text, []).append(name)
        elif _copies_differ(evidence, name):
            apart.append(name)
    sentences = [text.format(names=listed(names)) for text, names in found.items()]
    if apart:
        sentences.append(
            f"ranks that should hold the same gradient of {listed(apart)} hold different ones: it is not reduced, or "
            "they compute with different weights"
        )
    return sentences, {name for names in [*found.values(), apart] for name in names}


def _groups(evidence: Evidence, name: str, axis: str) -> Iterator[np.ndarray]:
    """The gradients [ranks, elements] of ranks that differ in their place along ``axis`` only and hold the same."""
    held = evidence.plan.values_by_rank("gradient", name, evidence.step)
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in held:
        here = evidence.plan.mesh.coordinates(rank)
        groups.setdefault(tuple(getattr(here, other) for other in AXES if other != axis), []).append(rank)
    for ranks in groups.values():
        places = [held[rank][0] for rank in ranks]
        if len(ranks) > 1 and all(np.array_equal(places[0], place) for place in places):
            yield np.stack([_spread_out(evidence, name, *held[rank]) for rank in ranks])


def _spread_out(evidence: Evidence, name: str, place: np.ndarray, values: np.ndarray) -> np.ndarray:
    whole = evidence.right("gradient", name).copy()
    whole[place] = values
    return whole


def _copies_differ(evidence: Evidence, name: str) -> bool:
    axes = [axis for axis in _REDUCED if getattr(evidence.plan.mesh, axis) > 1]
    scale = max(float(np.linalg.norm(evidence.right("gradient", name))), 1e-30)
    return any(
        float(np.linalg.norm(copies - copies[:1], axis=1).max()) > evidence.tolerance("gradient", name) * scale
        for axis in axes
        for copies in _groups(evidence, name, axis)
    )


def _partial(evidence: Evidence, name: str, axis: str) -> str:
    if not _copies_differ(evidence, name):
        return ""
    for copies in _groups(evidence, name, axis):
        if evidence.is_right("gradient", name, copies.mean(0)):
            return (
                f"the gradient of {{names}} is not averaged over {axis}: each rank keeps that of its own share, whose "
                "mean is the reference"
            )
        if evidence.is_right("gradient", name, copies.sum(0)):
            return f"the gradient of {{names}} is not reduced over {axis}: the sum of the ranks' parts is the reference"
    return ""


def _scaled(evidence: Evidence, c: float, names: list[str]) -> str:
    everything = len(names) == len(evidence.reference.names)
    of = "each gradient" if everything else f"the gradient of {listed(names)}"
    if abs(c) <= _ALIKE:
        return f"{of} is 0 under the plan: none arrives there"
    reasons = [text for value, text in _factors(evidence) if abs(value - c) <= _ALIKE * abs(value)]
    return f"{of} is {c:.4g} times the reference" + (f": {', or '.join(reasons)}" if reasons else "")


def _factors(evidence: Evidence) -> Iterator[tuple[float, str]]:
    """Factors of wrong averages, and what they mean."""
    mesh = evidence.plan.mesh
    if mesh.dp > 1:
        yield 1 / mesh.dp, f"averaged twice over dp ({mesh.dp} replicas)"
        yield float(mesh.dp), f"summed over dp ({mesh.dp} replicas) where it is to be averaged"
    if mesh.cp > 1:
        yield 1 / mesh.cp, f"divided by cp ({mesh.cp} ranks), over which it is to be summed"
        yield float(mesh.cp), f"counted once for each of the {mesh.cp} cp ranks"
    if mesh.tp > 1:
        yield 1 / mesh.tp, f"divided by tp ({mesh.tp} ranks), over which it is to be summed"
        yield float(mesh.tp), f"counted once for each of the {mesh.tp} tp ranks"
    for count, what in (
        (evidence.accumulate, "gradient accumulation steps"),
        (evidence.micro_batches, "micro-batches"),
    ):
        if count > 1:
            yield 1 / count, f"divided by the {count} {what} once too often, or only one of them counts"
            yield float(count), f"not divided by the {count} {what}"


def _is_permuted(values: np.ndarray, right: np.ndarray, tolerance: float) -> bool:
    if values.size < 2 or not np.isfinite(values).all():
        return False
    return bool(np.linalg.norm(np.sort(values) - np.sort(right)) <= tolerance * np.linalg.norm(right))


def _of_ranks(evidence: Evidence, kind: str, names: list[str]) -> list[str]:
    """Tensors of which only the part of one rank is wrong."""
    found: dict[str, list[str]] = {}
    for name in names:
        held = evidence.plan.values_by_rank(kind, name, evidence.step)
        right = evidence.right(kind, name)
        scale = max(float(np.abs(right).max(initial=0.0)), 1e-30)
        wrong = [rank for rank, (at, own) in held.items() if np.abs(own - right[at]).max(initial=0.0) > 1e-3 * scale]
        if len(held) > 1 and len(wrong) == 1:
            found.setdefault(f"rank {wrong[0]}", []).append(name)
    return [f"only the part of {rank} is wrong in the {kind} of {listed(names)}" for rank, names in found.items()]


def where(evidence: Evidence) -> str:
    """What is left to say without a pattern: where the error enters."""
    if evidence.loss and not evidence.gradients:
        return "the loss differs although gradients agree: it is put together in another way"
    if not evidence.gradients:
        return "gradients agree and updates do not: the optimizer computes something else"
    if evidence.loss:
        return "the forward pass computes something else, as the loss of this step differs already"
    return (
        "the loss of this step is right, so the backward pass or the reduction is wrong; the first in the order of the "
        f"backward pass is {evidence.gradients[-1]}"
    )


def of_weights(evidence: Evidence) -> list[str]:
    """What the weights that differ have in common, where all gradients are right."""
    names, found = list(evidence.weights), stale_copies(evidence, evidence.step)
    stale: dict[str, list[str]] = {}
    factors: dict[str, float] = {}
    for name in names:
        rank = _unchanged_part(evidence, name)
        if rank is not None:
            stale.setdefault(f"rank {rank}" if rank >= 0 else "", []).append(name)
            continue
        mine, right = evidence.update(evidence.plan, name), evidence.update(evidence.reference, name)
        c = factor(mine, right, 0.05)
        if c is not None:
            factors[name] = c
    for rank_text, unchanged in stale.items():
        of = f"the part of {rank_text} of {listed(unchanged)}" if rank_text else listed(unchanged)
        found.append(f"{of} did not change in step {evidence.step} although its gradient is right: a stale shard")
    if factors:
        found.append(_updates(evidence, factors))
    return found


def _unchanged_part(evidence: Evidence, name: str) -> int | None:
    """The rank whose part did not change (-1: nothing changed); None where what changed is otherwise wrong."""
    mine, right = evidence.update(evidence.plan, name), evidence.update(evidence.reference, name)
    moved = np.abs(right) > 0
    if not moved.any():
        return None
    if not mine[moved].any():
        return -1
    for rank, (place, _) in evidence.plan.values_by_rank("weight", name, evidence.step).items():
        mask = np.zeros(right.size, dtype=bool)
        mask[place] = True
        if (mask & moved).any() and not mine[mask & moved].any() and (mask & moved).sum() < moved.sum():
            return rank
    return None


def stale_copies(evidence: Evidence, step: int) -> list[str]:
    """Ranks that have other weights after ``step`` than the first rank that holds them, or than were updated."""
    found: dict[int, list[str]] = {}
    for name in evidence.reference.names:
        now = evidence.plan.whole("weight", name, step)
        before = evidence.plan.whole("weight", name, step - 1) if step else now
        change = float(np.abs(now - before).max(initial=0.0))
        least = max(0.5 * change, 4 * evidence.roundoff * float(np.abs(now).max(initial=0.0)))
        copies = evidence.plan.values_by_rank("copy", name, step) or evidence.plan.values_by_rank("weight", name, step)
        for rank, (place, own) in copies.items():
            if float(np.abs(own - now[place]).max(initial=0.0)) > least:
                found.setdefault(rank, []).append(name)
    when = f"after step {step}: a stale shard" if step else "before the first step: ranks begin differently"
    return [f"rank {rank} holds another copy of {listed(names)} {when}" for rank, names in found.items()]


def _updates(evidence: Evidence, factors: dict[str, float]) -> str:
    values = list(factors.values())
    same = max(values) - min(values) <= 0.05 * max(1e-30, abs(values[0]))
    names = list(factors)
    if not same or len(names) < 2:
        each = ", ".join(f"{name} {c:.3g}" for name, c in list(factors.items())[:3])
        return (
            f"gradients agree and updates are other multiples of the reference's ({each}): the optimizer's state or "
            "learning rate"
        )
    reason = "gradients are clipped by another norm" if evidence.clips else "another learning rate"
    return f"gradients agree and each update is {values[0]:.4g} times the reference's: {reason}"

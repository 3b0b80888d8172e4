"""The verdict on a plan, from its training, that of the reference, and that of the perturbed reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.verification.causes import causes, draws, is_causal
from workbench.verification.compare import (
    FACTOR,
    gradient_differences,
    loss_tolerance,
    tolerance,
    weight_differences,
)
from workbench.verification.evidence import Evidence, listed
from workbench.verification.result import DIFFERS, SAME, UNDECIDED, Finding, Verification
from workbench.verification.training import Training

#: bits of the significand
_BITS = {"fp32": 24, "fp16": 11, "bf16": 8}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the verdict needs to know of the plan: ``name`` and ``reference`` in words, and options of its spec."""

    name: str
    reference: str
    precision: str = "fp32"
    accumulate: int = 1
    micro_batches: int = 1
    clip: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """Differences and tolerances of ``steps`` steps, by tensor."""

    plan: Training
    reference: Training
    steps: int
    perturbation: float
    gradients: np.ndarray
    weights: np.ndarray
    allowed_gradients: np.ndarray
    allowed_weights: np.ndarray
    losses: np.ndarray
    allowed_losses: np.ndarray


def judge(plan: Training, reference: Training, perturbed: Training, about: Plan) -> Verification:
    """Compare the trainings. ``perturbed``: the reference with weights perturbed by rounding errors.

    Trainings of other lengths, as where one ended early, are compared as far as the shortest goes.
    """
    judged = _judge(plan, reference, perturbed)
    findings = _findings(judged, reference.names)
    evidence = _evidence(judged, findings, about)
    found = causes(evidence) if findings else []
    lost_mask = is_causal(reference) and is_causal(plan) is False
    random = draws(plan) or draws(reference)
    verdict = UNDECIDED if findings and random else DIFFERS if findings or lost_mask else SAME
    if lost_mask and not findings:
        found = causes(evidence)
    layers, rows = _by_layer(reference.names, judged)
    return Verification(
        verdict=verdict,
        sentence=_sentence(verdict, about, judged, findings),
        plan=about.name,
        reference=about.reference,
        steps=judged.steps,
        losses=plan.losses[: judged.steps].tolist(),
        reference_losses=reference.losses[: judged.steps].tolist(),
        loss_tolerances=judged.allowed_losses.tolist(),
        layers=layers,
        findings=findings,
        causes=found,
        notes=_notes(judged, about),
        basis=_basis(judged, about),
        **rows,
    )


def _judge(plan: Training, reference: Training, perturbed: Training) -> _Judged:
    steps = min(plan.steps, reference.steps, perturbed.steps)
    size = max(float(about.get("perturbation", 0.0)) for about in perturbed.about)
    allowed_gradients = tolerance(gradient_differences(perturbed, reference, steps), size)
    spread = weight_differences(perturbed, reference, allowed_gradients)
    losses = reference.losses[:steps]
    return _Judged(
        plan=plan,
        reference=reference,
        steps=steps,
        perturbation=size,
        gradients=gradient_differences(plan, reference, steps),
        weights=weight_differences(plan, reference, allowed_gradients),
        allowed_gradients=allowed_gradients,
        allowed_weights=tolerance(spread, size),
        losses=np.nan_to_num(np.abs(plan.losses[:steps] - losses), nan=np.inf),
        allowed_losses=loss_tolerance(losses, perturbed.losses[:steps], size),
    )


def _findings(judged: _Judged, names: list[str]) -> list[Finding]:
    """What differs at the first step that does."""
    for step in range(judged.steps + 1):
        found = []
        if step and judged.losses[step - 1] > judged.allowed_losses[step - 1]:
            found.append(_finding(step, "loss", "", judged.losses[step - 1], judged.allowed_losses[step - 1]))
        for what, values, allowed, row in (
            ("gradient", judged.gradients, judged.allowed_gradients, step - 1),
            ("weight", judged.weights, judged.allowed_weights, step),
        ):
            if row >= 0:
                wrong = np.flatnonzero(values[row] > allowed[row])
                order = wrong[np.argsort(-values[row][wrong], kind="stable")]
                found += [_finding(step, what, names[i], values[row, i], allowed[row, i]) for i in order]
        if found:
            return found
    return []


def _finding(step: int, what: str, name: str, difference: float, allowed: float) -> Finding:
    return Finding(step=step, what=what, name=name, difference=float(difference), tolerance=float(allowed))


def _evidence(judged: _Judged, findings: list[Finding], about: Plan) -> Evidence:
    reference = judged.reference
    step = findings[0].step if findings else 1
    differing = {what: {each.name for each in findings if each.what == what} for what in ("gradient", "weight")}
    rows = {"gradient": judged.allowed_gradients[max(0, step - 1)], "weight": judged.allowed_weights[step]}
    return Evidence(
        plan=judged.plan,
        reference=reference,
        step=step,
        loss=any(each.what == "loss" for each in findings),
        gradients=[name for name in reference.names if name in differing["gradient"]],
        weights=[name for name in reference.names if name in differing["weight"]],
        tolerances={kind: dict(zip(reference.names, map(float, row), strict=True)) for kind, row in rows.items()},
        accumulate=about.accumulate,
        micro_batches=about.micro_batches,
        clips=about.clip > 0,
        roundoff=2.0 ** -_BITS[about.precision],
    )


def _by_layer(names: list[str], judged: _Judged) -> tuple[list[str], dict[str, list[list[float]]]]:
    """Of each module the tensor that is farthest from its tolerance (or nearest to it), at each step."""
    owners = [name.rpartition(".")[0] for name in names]
    layers = list(dict.fromkeys(owners))
    rows: dict[str, list[list[float]]] = {"gradients": [], "gradient_tolerances": [], "weights": []}
    for layer in layers:
        own = [index for index, owner in enumerate(owners) if owner == layer]
        values, allowed = judged.gradients[:, own], judged.allowed_gradients[:, own]
        with np.errstate(invalid="ignore", divide="ignore"):
            worst = np.nan_to_num(values / allowed, nan=0.0, posinf=np.inf).argmax(1)
        at = np.arange(judged.steps)
        rows["gradients"].append(values[at, worst].tolist())
        rows["gradient_tolerances"].append(allowed[at, worst].tolist())
        rows["weights"].append(judged.weights[:, own].max(1).tolist())
    return layers, rows


def _sentence(verdict: str, about: Plan, judged: _Judged, findings: list[Finding]) -> str:
    of = f"{about.name} trains the same as {about.reference}"
    if verdict == SAME:
        worst = int(np.argmax(judged.losses)) if judged.steps else 0
        return (
            f"{of}: over {judged.steps} steps the loss differs by at most {judged.losses.max(initial=0.0):.2g} "
            f"(tolerance {judged.allowed_losses[worst]:.2g}), and every gradient and weight is within its tolerance."
        )
    if not findings:
        return (
            f"{about.name} does not train the same as {about.reference}: its loss agrees, but its causal mask is lost."
        )
    first = findings[0]
    if first.what == "loss":
        one, other = (training.losses[first.step - 1] for training in (judged.plan, judged.reference))
        what = f"the loss is {one:.6g} instead of {other:.6g} (tolerance {first.tolerance:.2g})"
        gradient = next((each for each in findings if each.what == "gradient"), None)
        what += f", and the {gradient}" if gradient is not None else ""
    else:
        what = f"relative difference of the {first}"
    when = f"at step {first.step}" if first.step else "before the first step"
    if verdict == UNDECIDED:
        return f"Whether {of} cannot be said, as the model draws random numbers; {when} {what}."
    return f"{about.name} does not train the same as {about.reference}: {when} {what}."


def _basis(judged: _Judged, about: Plan) -> str:
    return (
        f"{FACTOR:g} times what the reference differs from itself in {about.precision} when each weight is off by a "
        f"relative {judged.perturbation:.2g}, the rounding error of a sum in another order"
    )


def _notes(judged: _Judged, about: Plan) -> list[str]:
    plan, reference = judged.plan, judged.reference
    notes = []
    dropout = reference.said("dropout") or []
    if dropout:
        notes.append(
            f"dropout was switched off in all trainings ({listed(dropout)}): each replica draws masks of its own, "
            "which cannot be compared"
        )
    evaluating = reference.said("evaluating") or []
    if evaluating:
        notes.append(f"the cell left modules in evaluation mode, and they stay so: {listed(evaluating)}")
    if "batch_norm" in plan.remarks:
        notes.append(plan.remarks["batch_norm"])
    ignored = int(np.isinf(judged.allowed_gradients[-1]).sum()) if judged.steps else 0
    if ignored:
        names = [name for name, allowed in zip(reference.names, judged.allowed_gradients[-1], strict=True)
                 if np.isinf(allowed)]  # fmt: skip
        notes.append(f"gradients that are rounding error only are not judged: {listed(names)}")
    if reference.sampled:
        notes.append(f"of {len(reference.sampled)} large tensors a sample of the elements was compared")
    if is_causal(plan):
        notes.append("causal: another last token moves no logits of earlier positions")
    if judged.steps < max(plan.steps, reference.steps):
        notes.append(f"only {judged.steps} steps were compared: one training ended there")
    if about.precision != "fp32":
        notes.append(f"the reference computes in fp32, the plan in {about.precision}")
    if not judged.gradients.any() and not any(plan.values_by_rank("gradient", name, 1) for name in plan.names):
        notes.append("gradients were not compared: train_step decides when they are complete")
    return notes

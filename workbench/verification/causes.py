"""Why a plan trains otherwise: reasons that are known in advance, and patterns that errors leave in the tensors.

Each function looks for one kind of reason in the evidence of the first step that differs, and says it in a sentence, or
finds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from workbench.verification.evidence import Evidence, listed
from workbench.verification.patterns import of_gradients, of_weights, stale_copies, where
from workbench.verification.training import Training

#: a model is causal when another last token moves outputs at earlier positions by less than this share of its own
CAUSAL = 1e-3
#: remarks of a training about what is not that of one process
_REMARKS = (
    "loss_is_a_sum",
    "loss_of_averages",
    "loss_by_samples",
    "loss_factor",
    "loss_terms",
    "loss_weights",
    "contrastive_loss",
    "batch_statistics",
    "joint_loss",
    "batch_norm",
    "buffers_by_share",
)


def causes(evidence: Evidence) -> list[str]:
    """All that explain the difference: reasons known in advance first, then patterns."""
    found = [text for look in _KNOWN for text in look(evidence)]
    if evidence.step:
        found += stale_copies(evidence, evidence.step - 1) or (
            of_gradients(evidence) if evidence.gradients else of_weights(evidence)
        )
    return found or [where(evidence)]


def _initial(evidence: Evidence) -> list[str]:
    if evidence.step:
        return []
    return [
        f"training begins with other weights ({listed(evidence.weights)}): the model draws them in a way that depends "
        "on the rank or the number of ranks"
    ]


def _data(evidence: Evidence) -> list[str]:
    for step in range(1, evidence.step + 1):
        mine, right = evidence.plan.samples(step), evidence.reference.samples(step)
        missing = list((Counter(right) - Counter(mine)).elements())
        if mine and len(mine) != len(right):
            return [
                f"the global batch of step {step} has {len(mine)} samples, and {len(right)} in the reference: the "
                "dataloader's batches depend on the number of ranks, as with a DistributedSampler"
            ]
        if missing and mine:
            shapes = {digest.partition(" ")[2] for digest in right}
            if not shapes & {digest.partition(" ")[2] for digest in mine}:
                return [
                    f"in step {step} samples have other shapes than in the reference: a collate function that pads "
                    "each rank's share by itself, or a dataset that gives other samples"
                ]
            return [
                f"{len(missing)} of {len(right)} samples of step {step} are others than in the reference: the order of "
                "the data depends on the number of ranks, or samples are augmented by random numbers"
            ]
    return []


def _random(evidence: Evidence) -> list[str]:
    drew = [training.said("random") for training in (evidence.plan, evidence.reference)]
    names: list[str] = next((names for names in drew if names), [])
    if not draws(evidence.plan) and not draws(evidence.reference):
        return []
    where = f" ({listed(names)})" if names else ""
    return [
        f"the forward pass draws random numbers{where} that could not be switched off, and each replica draws its own: "
        "compare with dropout and noise set to 0 in the cell"
    ]


def draws(training: Training) -> bool:
    """Whether the model draws random numbers although dropout is switched off."""
    return any(about.get("random") is not None for about in training.about)


def _remarks(evidence: Evidence) -> list[str]:
    found = [evidence.plan.remarks[name] for name in _REMARKS if name in evidence.plan.remarks]
    labels = evidence.plan.labels(evidence.step)
    if found and len(set(labels)) > 1:
        found.append(f"replicas count {', '.join(map(str, labels))} labels in step {evidence.step}")
    return found


def _causality(evidence: Evidence) -> list[str]:
    right, found = is_causal(evidence.reference), is_causal(evidence.plan)
    if not right or found is not False:
        return []
    moved = evidence.plan.said("causality")
    return [
        "the causal mask is lost: another last token moves the logits of earlier positions by up to "
        f"{moved['earlier']:.2g} under the plan, and not at all in the reference"
    ]


def is_causal(training: Training) -> bool | None:
    """Whether earlier outputs stay as they are when the last token changes; None where that could not be asked."""
    found = training.said("causality")
    if not found or not found["last"]:
        return None
    return bool(found["earlier"] <= CAUSAL * found["last"])


def _skipped(evidence: Evidence) -> list[str]:
    if evidence.step not in (evidence.plan.said("skipped") or ()):
        return []
    return [f"the plan skipped the update of step {evidence.step}: a gradient overflowed with the present loss scale"]


_KNOWN: tuple[Callable[[Evidence], list[str]], ...] = (_initial, _data, _random, _remarks, _causality, _skipped)

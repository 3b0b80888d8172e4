"""What cells with a ``train_step`` have in common."""

from __future__ import annotations

from tests.training.cells.harness.case import Case

#: plans that train them, and what the others answer
STEP_PLANS = ("1 rank", "ddp", "torch ddp")
#: the loop of one process
STEPS = """
for batch, _ in zip(batches(globals()), range(spec.steps)):
    found = train_step(model, optimizer, batch)
    losses.append(float(sum(found.values()) if isinstance(found, dict) else found))
"""


def step_case(cell: str, **more: object) -> Case:
    """A case whose steps are its own; batches of 6 samples are shared unevenly where a loader gives fewer at last."""
    return Case(**{"cell": cell, "plain": STEPS, "plans": STEP_PLANS, "flags": {"steps": 6}, **more})  # type: ignore[arg-type]

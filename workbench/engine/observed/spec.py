"""The spec of an observed run: what can be said of it before its loop is known."""

from __future__ import annotations

from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec
from workbench.core.frameworks import OBSERVED

#: the planned steps of a loop that does not say how many it makes
UNKNOWN_STEPS = 10**6


def spec_of(
    name: str,
    *,
    ranks: int,
    kind: str,
    steps: int | None = None,
    precision: str = "fp32",
    stages: int = 1,
    micro_batches: int = 1,
    monitor: MonitorSpec | None = None,
) -> TrainSpec:
    """``kind``: how the model is wrapped, or "watched" while that is not known. ``steps``: None if nobody says.
    ``stages``: of a pipeline, through which ``micro_batches`` go."""
    return TrainSpec(
        name=name,
        plan=ParallelPlan(ranks=ranks, framework=OBSERVED, plugin=kind, pp=stages, micro_batches=micro_batches),
        steps=steps or UNKNOWN_STEPS,
        batch_size=0,
        precision=precision,
        eval_every=0,
        final_checkpoint=False,
        monitor=monitor or MonitorSpec(on_nonfinite="go"),
    )

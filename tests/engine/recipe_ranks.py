"""What the ranks of ``test_recipes`` do: train recipes for a few steps under each plan in turn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.benchmarks.single_process import spec_of
from workbench.core.recipe import recipe
from workbench.engine.entry import joined_of, load_strategy


def train(rank: int, ranks: int, directory: Path, *, steps: int, name: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Losses (NaN where this rank has none), the evaluation's values and texts, and seconds of training and of it."""
    spec = spec_of(name, steps=steps, ranks=ranks, **plan)
    strategy = load_strategy(spec)(spec, rank)
    with joined_of(spec)(rank, ranks, directory):
        workload = recipe(name).build(spec)
        strategy.check(spec, workload)
        strategy.prepare(workload)
        batches = workload.data.batches(strategy.coordinates.dp, strategy.mesh.dp)
        losses = []
        started = time.perf_counter()
        for _ in range(steps):
            loss = strategy.forward_backward([next(batches)])
            strategy.step()
            workload.lr_scheduler.step()
            losses.append(float("nan") if loss is None else float(loss))
        trained = time.perf_counter()
        found = workload.evaluate(strategy)
        seconds = (trained - started, time.perf_counter() - trained)
        strategy.close()
    return {"losses": losses, "values": found.values, "texts": list(found.texts), "seconds": seconds}


def train_all(
    rank: int, ranks: int, directory: Path, *, steps: int, plans: list[tuple[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What ``train`` returns for each recipe and plan, one after the other in the same process."""
    results = []
    for number, (name, plan) in enumerate(plans):
        meeting = directory / str(number)
        meeting.mkdir(exist_ok=True)
        results.append(train(rank, ranks, meeting, steps=steps, name=name, plan=plan))
    return results

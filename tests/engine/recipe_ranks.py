"""One rank of ``test_recipes``: trains recipes for a few steps under each plan in turn, and writes what it saw.

python -m tests.engine.recipe_ranks RANK RANKS DIRECTORY STEPS '[["stdlib-llama", {"plugin": "ddp"}], ...]'
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

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


def main() -> None:
    torch.set_num_threads(1)
    rank, ranks, directory, steps = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    results = []
    for number, (name, plan) in enumerate(json.loads(sys.argv[5])):
        meeting = directory / str(number)
        meeting.mkdir(exist_ok=True)
        results.append(train(rank, ranks, meeting, steps=steps, name=name, plan=plan))
    (directory / f"rank-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

"""How many full sets and local norms of gradients the governor grants a run, and what a full set costs.

``count_sets`` is what ``monitor.py --sets`` runs on each rank. Run as a script, this prints the processor time of each
part of a full set of 39 tensors (0.94 M elements) with cold caches: the median of ``--repeats``. The time of a rank's
thread is the same on a busy machine, but for its caches.

    python -m tests.benchmarks.gradient_sets [--repeats 25]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tests.benchmarks.machine import describe_machine
from workbench.core.config import TrainSpec
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.parts import Comparison, GradientPart, WeightPart
from workbench.engine.entry import observers_of
from workbench.engine.faults.nonfinite import NonfiniteGuard
from workbench.engine.frameworks.colossal.ranks import joined
from workbench.engine.frameworks.colossal.strategy import ColossalStrategy
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.governor import WRITING_SHARE
from workbench.engine.watch.host.sampler import Progress
from workbench.engine.watch.torch.gradient_statistics import GradientCollector
from workbench.engine.watch.torch.gradient_watch import GradientWatch
from workbench.engine.watch.torch.weights import WeightCollector
from workbench.rundir.directory import CONTROL_FILE
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.layer_norms import gradient_rows
from workbench.telemetry.store import Store


def logged(directory: Path, rank: int, spec: TrainSpec) -> RankLogWriter:
    """A rank's log, as a training makes it."""
    return RankLogWriter(directory, rank, share=WRITING_SHARE * spec.monitor.budget)


class Waiting(StepObserver):
    """Fills each step up to ``ms``: others' load then changes what watching costs, not how long a step takes."""

    def __init__(self, ms: float) -> None:
        self.ms = ms
        self.began = 0.0

    def begins(self, step: int, watch: int) -> None:
        self.began = time.perf_counter()

    def reduced(self, step: int) -> None:
        time.sleep(max(0.0, self.ms / 1e3 - (time.perf_counter() - self.began)))


class Parts(StepObserver):
    """Adds up what each observer says it cost."""

    def __init__(self, observers: list[StepObserver]) -> None:
        self.observers = observers
        self.spent_ms = {type(observer).__name__: 0.0 for observer in observers}

    def accounted(self, step: int, cost_ms: float) -> None:
        for observer in self.observers:
            self.spent_ms[type(observer).__name__] += observer.cost_ms


def count_sets(rank: int, ranks: int, directory: Path, *, step_ms: int, steps: int) -> dict[str, float]:
    """Trains the ``tiny`` size of ``stdlib-llama`` in steps of ``step_ms``; how often what was watched."""
    from workbench.core.recipe import recipe

    spec = TrainSpec.from_options(
        {**recipe("stdlib-llama").defaults["tiny"], "recipe": "stdlib-llama", "ranks": ranks, "eval_every": 0,
         "steps": steps, "batch_size": 2, "plugin": "ddp"}
    )  # fmt: skip
    (directory / CONTROL_FILE).touch()
    with joined(rank, ranks, directory, device_type="cpu"), logged(directory, rank, spec) as log:
        strategy, workload = ColossalStrategy(spec, rank), recipe("stdlib-llama").build(spec)
        strategy.prepare(workload)
        exchange = exchange_of(rank, ranks)
        control = AgreedControl(directory, exchange)
        watch = observers_of(spec, strategy, workload, log, exchange)
        parts = Parts(watch)
        Trainer(
            run=directory,
            spec=spec,
            workload=workload,
            strategy=strategy,
            control=control,
            log=log,
            guard=NonfiniteGuard(directory, strategy, log, control),
            progress=Progress(),
            observers=[*watch, Waiting(step_ms), parts],
        ).run()
        log.flush()
        (governor,) = [one._governor for one in watch if isinstance(one, GradientWatch)]
        strategy.close()
    store = Store(directory)
    store.assumed = spec
    store.refresh()
    rows = pd.DataFrame(gradient_rows(store)).groupby("scope")["step"].nunique()
    own = store.table("steps")
    passed = own["step_time_ms"][own["rank"] == rank]
    first_ms = float(own["monitor_ms"][(own["rank"] == rank) & (own["step"] == 1)][0])
    size = sum(file.stat().st_size for file in directory.glob("rank-*/layer_norms.arrow"))
    return {
        "full": len(set(store.table("weights")["step"].tolist())),
        "local": int(rows["local"]),
        "reduced": int(rows["reduced"]),
        "step_ms": float(statistics.median(passed)),
        "cost": governor.cost,
        "full_ms": governor._full.cost_ms or 0.0,
        "norms_ms": governor._norms.cost_ms or 0.0,
        "first_ms": first_ms,
        "bytes": size / ranks,
        **{f"by {name}": spent / steps for name, spent in parts.spent_ms.items()},
        "by the log": log.cost_s * 1e3 / steps,
    }


def tell_sets(step_ms: int, steps: int, found: dict[str, float]) -> None:
    print(
        f"{steps} steps of {found['step_ms']:.0f} ms (asked: {step_ms}): {found['full']} full sets, local norms of all "
        f"layers in {found['local']} steps, reduced ones in {found['reduced']}; a full set takes "
        f"{found['full_ms']:.1f} ms (step 1: {found['first_ms']:.1f}), local norms {found['norms_ms']:.1f} ms; "
        f"watching took {found['cost']:.2%}; layer_norms.arrow: {found['bytes'] / steps:.0f} bytes per step and rank",
        flush=True,
    )
    parts = [f"{name.removeprefix('by ')} {ms:.3f}" for name, ms in found.items() if name.startswith("by ") and ms]
    print(f"    ms a step: {', '.join(parts)}", flush=True)


def tensors() -> list[torch.Tensor]:
    """Tensors of the shapes of a small Llama's parameters."""
    hidden, inner, vocabulary = 128, 352, 512
    layer = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)] + [(hidden,)] * 2
    return [torch.randn(shape) for shape in [(vocabulary, hidden), *layer * 4, (hidden,), (vocabulary, hidden)]]


def cost_of_parts(repeats: int) -> dict[str, float]:
    """Ms of processor time of each part of a full set."""
    gradients, weights, first, second = (tensors() for _ in range(4))
    parts = [GradientPart(str(index), tensor, "") for index, tensor in enumerate(gradients)]
    held = [WeightPart(str(i), w, "", (m, v)) for i, (w, m, v) in enumerate(zip(weights, first, second, strict=True))]
    local, reduced = GradientCollector(keep=True, sampled=True), GradientCollector(sampled=True)
    collector, cold = WeightCollector(), torch.ones(4_000_000)
    spent: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        cold.mul_(1.0)  # what a step leaves in the caches is not the gradients
        began = time.thread_time()
        result = work()
        spent.setdefault(name, []).append((time.thread_time() - began) * 1e3)
        return result

    for _ in range(repeats):
        timed("local gradients", lambda: local.take(parts))
        timed("their products", lambda: local.compare(Comparison("exact", [[(g, g)] for g in gradients])))
        timed("reduced gradients", lambda: reduced.take(parts))
        timed("weights before", lambda: collector.before(held))
        torch._foreach_add_(weights, 1e-3)
        pending = [local.finish(1, 0, "local"), reduced.finish(1, 0, "reduced")]
        pending.append(timed("weights after", lambda: collector.after(held, 1, 0)))
        timed("records", lambda pending=pending: [one.records() for one in pending])
    return {name: statistics.median(values) for name, values in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=25)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(describe_machine())
    found = cost_of_parts(repeats)
    print(f"a full set: {sum(found.values()):.1f} ms of processor time")
    print("    " + ", ".join(f"{name} {ms:.2f}" for name, ms in found.items()))


if __name__ == "__main__":
    main()

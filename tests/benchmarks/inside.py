"""What looking inside the model costs: steps that are looked at, and the whole training within its budget.

Two CPU ranks (ddp) train the Llama of ``monitor.py`` in three ways by turns, step by step, in the same processes: bare
(``--monitor off``), with the monitor as it is by default, and with ``--watch activations,attention`` besides. The mean
step of each, by the CPU time of the rank, is compared with the mean bare step; and the mean step that was looked at
with the others of the same way. "switched off" is the third way once ``watch`` is off again.

    python tests/benchmarks/inside.py [--steps-ms 50 500] [--rounds 3] [--turns 100]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.monitor import PLANS, SIZES, NoLog, Same, Way, cost_of_sampling, loss_of, model_and_batch, paired
from tests.engine.rank_pool import RankPool
from workbench.core.config import TrainSpec
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.workload import Workload
from workbench.engine.entry import observers_of
from workbench.engine.faults.nonfinite import NonfiniteGuard
from workbench.engine.frameworks.colossal.ranks import joined
from workbench.engine.frameworks.colossal.strategy import ColossalStrategy
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.sampler import Progress
from workbench.engine.watch.inside.inside_watch import InsideWatch
from workbench.rundir.directory import CONTROL_FILE
from workbench.rundir.log import RankLogWriter

WATCH = "activations,attention"
#: way -> options of the monitor
WAYS: dict[str, dict[str, Any]] = {
    "bare": {"level": "off"},
    "monitor": {},
    "inside": {"watch": WATCH},
    "switched off": {"watch": WATCH},
}


def rank_main(rank: int, ranks: int, directory: Path, *, step_ms: int, rounds: int, turns: int) -> Any:
    """Per way and round: ms of a step by the clock and by the CPU; and the CPU ms of a step that was looked at."""
    model, batch = model_and_batch(step_ms, ranks)
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": 8, "eval_every": 0, **PLANS["ddp"]})
    (directory / CONTROL_FILE).touch()
    with joined(rank, ranks, directory, device_type="cpu"):
        strategy = ColossalStrategy(spec, rank)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        workload = Workload(model=model, optimizer=optimizer, data=Same(batch), criterion=loss_of)  # type: ignore[arg-type]
        strategy.prepare(workload)
        ways = {name: _way(name, strategy, workload, directory) for name in WAYS}
        for name in [*ways] * 3:
            ways[name].step()
        _watch_of(ways["switched off"]).set("watch", "")
        found = _measured(ways, rounds, turns)
        found["seen"] = _watch_of(ways["inside"])._governor.cost
        strategy.close()
    for way in ways.values():
        if way.log is not None:
            way.log.close()
    return found


def _watch_of(way: Way) -> InsideWatch:
    return next(one for one in way.trainer.observers if isinstance(one, InsideWatch))


def _way(name: str, strategy: ColossalStrategy, workload: Workload, directory: Path) -> Way:
    spec = strategy.spec.replace(**WAYS[name])
    log = RankLogWriter(directory / name.replace(" ", "-"), strategy.rank) if name != "bare" else None
    exchange = exchange_of(strategy.rank, spec.plan.ranks)
    control = AgreedControl(directory, exchange)
    trainer = Trainer(
        run=directory,
        spec=spec,
        workload=workload,
        strategy=strategy,
        control=control,
        log=log or NoLog(),  # type: ignore[arg-type]
        guard=NonfiniteGuard(directory, strategy, log or NoLog(), control),  # type: ignore[arg-type]
        progress=Progress(),
        observers=observers_of(spec, strategy, workload, log, exchange) if log else [],
    )
    return Way(trainer, log, cost_of_sampling(spec.monitor.sample_hz) if log else 0.0)


def _measured(ways: dict[str, Way], rounds: int, turns: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: [] for name in (*ways, "looked", "not looked")}
    for _ in range(rounds):
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
        before = {name: way.thread_ms() for name, way in ways.items()}
        for turn in range(turns):
            for name in [*ways] if turn % 2 == 0 else [*ways][::-1]:
                _, *times = ways[name].step()
                spent[name].append((times[0], times[1]))
                if name == "inside":
                    sort = "not looked" if _watch_of(ways[name])._collector is None else "looked"
                    spent[sort].append((times[0], times[1]))
        for name, samples in spent.items():
            way = ways.get(name)
            written_ms = (way.thread_ms() - before[name]) / len(samples) if way is not None else 0.0
            means = [statistics.mean(values) + written_ms for values in zip(*samples, strict=True)] or [0.0, 0.0]
            found[name].append(means)
    return found


def tell(step_ms: int, found: list[dict[str, Any]]) -> None:
    """The ratios of the mean steps, median of the rounds and spread."""
    bare = paired(found, "bare")
    print(f"ddp, {statistics.median(clock for clock, _ in bare):.1f} ms a step (meant: {step_ms})")
    pairs = [(name, "bare") for name in ("monitor", "inside", "switched off")]
    for name, other in (*pairs, ("looked", "not looked")):
        both = zip(paired(found, name), paired(found, other), strict=True)
        ratios = [one[1] / base[1] for one, base in both if one[1] and base[1]]
        if ratios:
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(f"  {name:12s} CPU {statistics.median(ratios):.3f}x of {other} ({spread})")
    print(f"  the watch says: looking inside takes {found[0]['seen']:.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps-ms", nargs="+", type=int, default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=100, help="steps of each way in a round")
    arguments = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        for step_ms in arguments.steps_ms:
            options = {"step_ms": step_ms, "rounds": arguments.rounds, "turns": arguments.turns}
            tell(step_ms, pool.run(2, "tests.benchmarks.inside:rank_main", timeout_s=600, **options))


if __name__ == "__main__":
    main()

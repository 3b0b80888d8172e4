"""What watching costs: step time bare, light and full, and as people do it without us.

Two CPU ranks train and are watched in one way and another by turns, step by step, in the same processes: A B C A B C.
Each way is a trainer of its own over the same model, with the observers that a run of that level has; bare is one at
``--monitor off`` that logs nothing. Steps are sorted by what was watched in them (nothing, one group of layers, the
full set); the medians of each sort, weighted by how often the governor chose it, are compared with the median bare
step, by the clock and by the CPU time of the rank (where others use the machine too, only the second is quiet). What
the threads of the log and of the device sampler spend is added. Each of ``--rounds`` gives a ratio. ``naive`` is a hook
per parameter with ``.item()`` for each figure, ``tensorboard`` a histogram of every gradient at each step.

With ``--sets`` it is counted instead, for runs of 400 steps under ddp, how many full sets and local norms the governor
grants, and in how many steps the norms of all layers are known; steps are filled up to their length by waiting.

    python tests/benchmarks/monitor.py [--plans ddp zero1 tp] [--steps-ms 5 50 500] [--rounds 5] [--turns 60]
    python tests/benchmarks/monitor.py --sets [--steps-ms 5 50 118 500]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks.gradient_sets import logged, tell_sets
from tests.benchmarks.machine import describe_machine
from tests.engine.rank_pool import RankPool
from workbench.core.config import TrainSpec
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import unmarked
from workbench.engine.base.workload import Workload
from workbench.engine.entry import observers_of
from workbench.engine.faults.nonfinite import NonfiniteGuard
from workbench.engine.frameworks.colossal.ranks import joined
from workbench.engine.frameworks.colossal.strategy import ColossalStrategy
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.sampler import DeviceSampler, Progress
from workbench.engine.watch.torch.gradient_watch import GradientWatch
from workbench.engine.watch.torch.phases import PhaseWatch
from workbench.rundir.directory import CONTROL_FILE
from workbench.rundir.log import RankLogWriter

PLANS = {"ddp": {"plugin": "ddp"}, "zero1": {"plugin": "zero1"}, "tp": {"plugin": "hybrid", "tp": 2}}
#: about this many ms a step on one core: hidden size, layers, samples a replica, tokens a sample
SIZES = {50: (128, 4, 4, 128), 500: (320, 8, 4, 128)}
GOAL = 1.01
VOCABULARY = 1024


def model_and_batch(step_ms: int, replicas: int) -> tuple[torch.nn.Module, Any]:
    """A Llama and a global batch; for 5 ms a small perceptron, as a Llama's Python alone takes longer."""
    torch.manual_seed(0)
    if step_ms == 5:
        layers = [torch.nn.Linear(256, 256) for _ in range(8)]
        return torch.nn.Sequential(*layers), (torch.randn(64 * replicas, 256), torch.randn(64 * replicas, 256))
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, samples, tokens = SIZES[step_ms]
    sizes = {"hidden_size": hidden, "intermediate_size": 11 * hidden // 4, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, max_position_embeddings=tokens, **sizes)
    ids = torch.randint(0, VOCABULARY, (samples * replicas, tokens))
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def loss_of(outputs: Any, batch: Any) -> torch.Tensor:
    return outputs.loss if hasattr(outputs, "loss") else torch.nn.functional.mse_loss(outputs, batch[-1])


class Naive(StepObserver):
    """A hook per parameter that fetches each figure."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.figures: dict[str, list[float]] = {}

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        handles = [
            parameter.register_post_accumulate_grad_hook(lambda held, name=name: self.look(name, held))
            for name, parameter in self.parameters.items()
        ]
        yield
        for handle in handles:
            handle.remove()

    def look(self, name: str, parameter: torch.nn.Parameter) -> None:
        gradient = parameter.grad
        counts = torch.histc(gradient.abs().log2(), 64, -32, 32)
        figures = (gradient.norm(), gradient.abs().max(), gradient.mean(), (gradient == 0).float().mean())
        bad = (~torch.isfinite(gradient)).sum()
        self.figures[name] = [figure.item() for figure in (*figures, bad)] + counts.tolist()


class TensorBoard(Naive):
    """A histogram of each gradient in torch's own writer."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(parameters)
        self.writer = SummaryWriter(folder)
        self.step = 0

    def begins(self, step: int, watch: int) -> None:
        self.step = step

    def look(self, name: str, parameter: torch.nn.Parameter) -> None:
        self.writer.add_histogram(name, parameter.grad, self.step)


class Same:
    """The same batch at every step."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Any]:
        return itertools.repeat(torch.utils._pytree.tree_map(lambda leaf: leaf.chunk(dp_size)[dp], self.batch))


class NoLog:
    """Stands for a rank log that nothing is written to."""

    cost_s, rank = 0.0, 0

    def append(self, record: Any) -> None: ...

    def event(self, *args: Any, **more: Any) -> None: ...


class Way:
    """One way to watch: a trainer, entered for a step at a time. ``sampling_ms``: what the device sampler costs a
    second."""

    def __init__(self, trainer: Trainer, log: RankLogWriter | None, sampling_ms: float) -> None:
        self.trainer = trainer
        self.log = log
        self.sampling_ms = sampling_ms
        self.number = 0
        watch = next((one for one in trainer.observers if isinstance(one, PhaseWatch)), None)
        self._wraps = dict(watch._collectives._installed) if watch is not None else {}
        self._told = trainer.strategy.mark, trainer.strategy.aside
        trainer.begin()
        self.leave()

    def enter(self) -> None:
        """Watch the phases; only what is measured may."""
        for name, (_, wrap) in self._wraps.items():
            setattr(dist, name, wrap)
        self.trainer.strategy.mark, self.trainer.strategy.aside = self._told

    def leave(self) -> None:
        for name, (original, _) in self._wraps.items():
            setattr(dist, name, original)
        self.trainer.strategy.mark, self.trainer.strategy.aside = unmarked, lambda observer: observer

    def step(self) -> tuple[int, float, float]:
        """What gradients were watched, and ms by the clock and of the rank's CPU time."""
        self.number += 1
        self.enter()
        began, cpu = time.perf_counter(), time.process_time()
        self.trainer.take_step(self.number)
        self.trainer.steering.boundary(self.number)
        spent = (time.perf_counter() - began) * 1e3, (time.process_time() - cpu) * 1e3
        self.leave()
        self.trainer.progress.sampling_s += self.sampling_ms / 1e3 * spent[0] / 1e3
        codes = [one._code for one in self.trainer.observers if isinstance(one, GradientWatch)]
        return (codes[0] if codes else 0, *spent)

    def thread_ms(self) -> float:
        """What the log's thread has spent so far."""
        if self.log is None:
            return 0.0
        self.log.flush()
        return time.clock_gettime(time.pthread_getcpuclockid(self.log._thread.ident)) * 1e3  # type: ignore[arg-type]


def rank_main(rank: int, ranks: int, directory: Path, *, plan: str, step_ms: int, rounds: int, turns: int) -> Any:
    """Per way of watching and round: ms of a step by the clock and by the CPU; and what the watch says it costs."""
    replicas = ranks // PLANS[plan].get("tp", 1)
    model, batch = model_and_batch(step_ms, replicas)
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": 8, "eval_every": 0, "grad_every": None, **PLANS[plan]})
    (directory / CONTROL_FILE).touch()
    with joined(rank, ranks, directory, device_type="cpu"):
        strategy = ColossalStrategy(spec, rank)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        workload = Workload(model=model, optimizer=optimizer, data=Same(batch), criterion=loss_of)  # type: ignore[arg-type]
        strategy.prepare(workload)
        ways = ways_to_watch(strategy, workload, directory)
        found = measured(ways, rounds, turns)
        full = ways["full"].trainer
        (governor,) = [one._governor for one in full.observers if isinstance(one, GradientWatch)]
        found["cost"], found["interval"] = governor.cost, governor.interval
        if found["interval"] is None:
            raise RuntimeError("the watch was never told what it cost, so its figures are not those of a training")
        strategy.close()
    for way in ways.values():
        if way.log is not None:
            way.log.close()
    return found


def ways_to_watch(strategy: ColossalStrategy, workload: Workload, directory: Path) -> dict[str, Way]:
    named = {name: parameter for name, parameter in strategy.plan.module.named_parameters() if parameter.requires_grad}
    others = {"bare": [], "naive": [Naive(named)], "tensorboard": [TensorBoard(named, str(directory / "tensorboard"))]}
    sampling_ms = cost_of_sampling(strategy.spec.monitor.sample_hz)
    ways = {}
    for name in ("bare", "light", "full", "naive", "tensorboard"):
        is_ours = name not in others
        spec = strategy.spec.replace(level=name if is_ours else "off")
        log = logged(directory / name, strategy.rank, spec) if is_ours else None
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
            observers=observers_of(spec, strategy, workload, log, exchange) if log else others[name],
        )
        ways[name] = Way(trainer, log, sampling_ms if is_ours else 0.0)
    return ways


def cost_of_sampling(hz: float) -> float:
    """Ms of CPU time a second of the device sampler's thread."""
    state = Progress()
    with DeviceSampler(NoLog(), rank=0, hz=100, device="cpu", progress=state) as sampler:  # type: ignore[arg-type]
        while sampler.samples < 50:
            time.sleep(0.01)
    return state.sampling_s / sampler.samples * hz * 1e3


def measured(ways: dict[str, Way], rounds: int, turns: int) -> dict[str, Any]:
    for name in [*ways] * 3:
        ways[name].step()
    found: dict[str, Any] = {name: [] for name in ways}
    for _ in range(rounds):
        spent: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ways}
        before = {name: way.thread_ms() for name, way in ways.items()}
        for turn in range(turns):
            names = ["bare", "light", "full"] if turn % 10 else list(ways)
            for name in names if turn % 2 == 0 else names[::-1]:
                spent[name].append(ways[name].step())
        for name, way in ways.items():
            written_ms = (way.thread_ms() - before[name]) / len(spent[name])
            per_step = [typical(spent[name], which) for which in (1, 2)]
            found[name].append([ms + written_ms + way.sampling_ms * per_step[0] / 1e3 for ms in per_step])
    return found


def typical(samples: list[tuple[int, float, float]], which: int) -> float:
    """Mean over the sorts of steps, each with its median."""
    total = 0.0
    for sort in {sample[0] for sample in samples}:
        own = [sample[which] for sample in samples if sample[0] == sort]
        total += len(own) * statistics.median(own)
    return total / len(samples)


def tell(plan: str, step_ms: int, found: list[dict[str, Any]]) -> None:
    """Per way of watching: the ratio of both ranks' mean step to the bare one, median of the rounds and spread."""
    bare = paired(found, "bare")
    print(f"{plan}, {statistics.median(clock for clock, _ in bare):.1f} ms a step (meant: {step_ms})")
    for name in ("light", "full", "naive", "tensorboard"):
        of = paired(found, name)
        for what, index in (("clock", 0), ("CPU", 1)):
            ratios = [one[index] / other[index] for one, other in zip(of, bare, strict=True)]
            goal = f", goal <= {GOAL}x" if name == "full" else ""
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(f"  {name:12s} {what:5s} {statistics.median(ratios):.3f}x ({spread}){goal}")
    print(
        f"  the watch says: full costs {found[0]['cost']:.2%}, full set every {found[0]['interval']} steps", flush=True
    )


def paired(found: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """(clock, CPU) ms per step of each round, the mean of the ranks."""
    rounds = zip(*(rank[name] for rank in found), strict=True)
    return [tuple(statistics.mean(values) for values in zip(*ranks, strict=True)) for ranks in rounds]  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--steps-ms", nargs="+", type=int, default=None, choices=[5, 118, *SIZES])
    parser.add_argument("--sets", action="store_true", help="count what the governor grants")
    parser.add_argument("--steps", type=int, default=400, help="of a run of --sets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=60, help="steps of each way in a round")
    arguments = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        if arguments.sets:
            for step_ms in arguments.steps_ms or [5, 50, 118, 500]:
                asked = {"step_ms": step_ms, "steps": arguments.steps}
                found = pool.run(2, "tests.benchmarks.gradient_sets:count_sets", timeout_s=600, **asked)
                tell_sets(step_ms, arguments.steps, found[0])
            return
        for step_ms in arguments.steps_ms or [5, *SIZES]:
            for plan in arguments.plans:
                if step_ms == 5 and plan == "tp":
                    continue  # a perceptron has no tensor-parallel policy
                options = {"plan": plan, "step_ms": step_ms, "rounds": arguments.rounds, "turns": arguments.turns}
                tell(plan, step_ms, pool.run(2, "tests.benchmarks.monitor:rank_main", timeout_s=600, **options))


if __name__ == "__main__":
    main()

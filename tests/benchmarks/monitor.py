"""What watching costs: step time bare, light and full, and as people do it without us.

Two CPU ranks train and are watched in one way and another by turns, step by step, in the same processes: A B C A B C.
Steps are sorted by what was watched in them (nothing, one group of layers, the full set); the medians of each sort,
weighted by how often the governor chose it, are compared with the median bare step, by the clock and by the CPU time of
the rank (where others use the machine too, only the second is quiet). What the thread of the log spends is added. Each
of ``--rounds`` gives a ratio. ``naive`` is a hook per parameter with ``.item()`` for each figure, ``tensorboard`` a
histogram of every gradient at each step.

    python tests/benchmarks/monitor.py [--plans ddp zero1 tp] [--steps-ms 5 50 500] [--rounds 5] [--turns 60]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.machine import describe_machine
from tests.engine.rank_pool import RankPool
from workbench.config import TrainSpec
from workbench.engine.control import AgreedControl
from workbench.engine.governor import FIRST_GROUP
from workbench.engine.gradient_watch import GradientWatch
from workbench.engine.observer import StepObserver
from workbench.engine.process_group import joined
from workbench.engine.strategies.base import Strategy
from workbench.engine.strategies.colossal import ColossalStrategy
from workbench.engine.workload import Workload
from workbench.rank_log import RankLogWriter
from workbench.run_directory import CONTROL_FILE

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


def stepper(strategy: Strategy, share: Any, control: AgreedControl) -> Callable[[list[StepObserver], int], None]:
    """One step as the trainer takes it, for whoever watches it, and the log that they write to."""
    written_s: dict[RankLogWriter, float] = {}

    def step(observers: list[StepObserver], number: int, log: RankLogWriter | None) -> None:
        watch = control.rider
        control.post(sum(observer.propose(number) for observer in observers))
        for observer in observers:
            observer.begins(number, watch)
        with ExitStack() as around:
            for observer in observers:
                around.enter_context(observer.around(number))
            strategy.forward_backward([share])
        for observer in observers:
            observer.reduced(number)
        float(strategy.grad_sq())
        strategy.step()
        for observer in observers:
            observer.updated(number, False)
            observer.ends(number)
        cost_ms = sum(observer.cost_ms for observer in observers)
        if log is not None:
            before, written_s[log] = written_s.get(log, 0.0), log.cost_s
            cost_ms += (written_s[log] - before) * 1e3
        for observer in observers:
            observer.accounted(number, cost_ms)
        control.take()

    return step


def rank_main(rank: int, ranks: int, directory: Path, *, plan: str, step_ms: int, rounds: int, turns: int) -> Any:
    """Per way of watching and round: ms of a step by the clock and by the CPU; and what the watch says it costs."""
    replicas = ranks // PLANS[plan].get("tp", 1)
    model, batch = model_and_batch(step_ms, replicas)
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": 8, **PLANS[plan]})
    (directory / CONTROL_FILE).touch()
    logs = {name: RankLogWriter(directory / name, rank) for name in ("light", "full")}
    with joined(rank, ranks, directory, device_type="cpu"):
        strategy = ColossalStrategy(spec, rank)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        strategy.prepare(Workload(model=model, optimizer=optimizer, data=None, criterion=loss_of))  # type: ignore[arg-type]
        share = torch.utils._pytree.tree_map(lambda leaf: leaf.chunk(replicas)[strategy.coordinates.dp], batch)
        step = stepper(strategy, share, AgreedControl(directory, rank, ranks))
        ways = ways_to_watch(strategy, spec, logs, directory)
        watch = ways["full"][0]
        found = measured(step, ways, logs, rounds, turns)
        governor = watch._governor  # type: ignore[attr-defined]
        found["cost"], found["interval"] = governor.cost, governor.interval
        if not rank and found["interval"] is None:
            raise RuntimeError("the watch was never told what it cost, so its figures are not those of a training")
        strategy.close()
    for log in logs.values():
        log.close()
    return found


def ways_to_watch(
    strategy: ColossalStrategy, spec: TrainSpec, logs: dict[str, RankLogWriter], directory: Path
) -> dict[str, list[StepObserver]]:
    named = {name: parameter for name, parameter in strategy.plan.module.named_parameters() if parameter.requires_grad}
    device = torch.device("cpu")
    return {
        "bare": [],
        "light": [GradientWatch(spec.replace(level="light"), strategy, logs["light"], device)],
        "full": [GradientWatch(spec, strategy, logs["full"], device)],
        "naive": [Naive(named)],
        "tensorboard": [TensorBoard(named, str(directory / "tensorboard"))],
    }


def measured(
    step: Callable[..., None],
    ways: dict[str, list[StepObserver]],
    logs: dict[str, RankLogWriter],
    rounds: int,
    turns: int,
) -> dict[str, Any]:
    number = 0
    spent: dict[str, list[tuple[int, float, float]]] = {}

    def once(name: str) -> None:
        nonlocal number
        number += 1
        began, cpu = time.perf_counter(), time.process_time()
        step(ways[name], number, logs.get(name))
        sort = getattr(ways[name][0], "_code", 0) if ways[name] else 0
        sample = min(sort, FIRST_GROUP), (time.perf_counter() - began) * 1e3, (time.process_time() - cpu) * 1e3
        spent.setdefault(name, []).append(sample)

    for name in [*ways] * 3:
        once(name)
    for log in logs.values():
        log.flush()  # the first one imports pandas
    found: dict[str, Any] = {name: [] for name in ways}
    for _ in range(rounds):
        spent.clear()
        written = {name: cpu_ms_of_thread(log) for name, log in logs.items()}
        for turn in range(turns):
            names = ["bare", "light", "full"] if turn % 10 else list(ways)
            for name in names if turn % 2 == 0 else names[::-1]:
                once(name)
        for name, log in logs.items():
            log.flush()
            written[name] = (cpu_ms_of_thread(log) - written[name]) / turns
        for name, samples in spent.items():
            found[name].append([typical(samples, which) + written.get(name, 0.0) for which in (1, 2)])
    return found


def cpu_ms_of_thread(log: RankLogWriter) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(log._thread.ident)) * 1e3  # type: ignore[arg-type]


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
    parser.add_argument("--steps-ms", nargs="+", type=int, default=[5, 50, 500], choices=[5, *SIZES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=60, help="steps of each way in a round")
    arguments = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        for step_ms in arguments.steps_ms:
            for plan in arguments.plans:
                if step_ms == 5 and plan == "tp":
                    continue  # a perceptron has no tensor-parallel policy
                options = {"plan": plan, "step_ms": step_ms, "rounds": arguments.rounds, "turns": arguments.turns}
                tell(plan, step_ms, pool.run(2, "tests.benchmarks.monitor:rank_main", timeout_s=600, **options))


if __name__ == "__main__":
    main()

"""What a recipe reaches in one plain process, without any framework: the figure beside which a distributed run stands.

    python tests/benchmarks/single_process.py [--recipe stdlib-llama] [--size tiny] [--steps N] [--threads 1]

Prints first and last loss, validation values, samples, tokens per second and milliseconds of a step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.core.recipe import recipe
from workbench.engine.base.batch import Batch
from workbench.engine.base.parts import BatchObserver, GradientPart
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Evaluation, Workload
from workbench.engine.data.batches import split


class PlainStrategy(Strategy):
    """One process, plain PyTorch, nothing watched."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None: ...

    def prepare(self, workload: Workload) -> None:
        self.workload = workload
        self.device = next(workload.model.parameters()).device

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        for piece in pieces:
            on_device = {name: tensor.to(self.device) for name, tensor in piece.items()}
            loss = self.workload.criterion(self.workload.model(**on_device), on_device) / len(pieces)
            loss.backward()
            total += loss.detach()
        return total

    def grad_sq(self) -> torch.Tensor:
        return sum(p.grad.square().sum() for p in self.workload.model.parameters() if p.grad is not None)

    def step(self) -> bool:
        if self.spec.clip:
            torch.nn.utils.clip_grad_norm_(self.workload.model.parameters(), self.spec.clip)
        self.workload.optimizer.step()
        self.workload.optimizer.zero_grad()
        return True

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def local_factor(self) -> float:
        return 1.0

    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        return []

    @torch.no_grad()
    def forward(self, batch: Batch) -> Any:
        self.workload.model.eval()
        outputs = self.workload.model(**{name: tensor.to(self.device) for name, tensor in batch.items()})
        self.workload.model.train()
        return outputs

    def skip(self) -> None:
        self.workload.optimizer.zero_grad()

    @property
    def module(self) -> torch.nn.Module:
        return self.workload.model

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor | None:
        raise NotImplementedError("nothing is searched for here")

    def close(self) -> None: ...


@dataclass(kw_only=True)
class Result:
    """``losses`` of each step; ``step_ms`` the median time of one; ``evaluation`` after the last."""

    losses: list[float] = field(default_factory=list)
    step_ms: float = 0.0
    build_s: float = 0.0
    train_s: float = 0.0
    evaluate_s: float = 0.0
    tokens_per_second: float = 0.0
    evaluation: Evaluation


def spec_of(name: str, size: str = "", **options: Any) -> TrainSpec:
    """The spec of a recipe with its defaults, as ``%dist_train`` resolves it."""
    chosen = recipe(name)
    size = size or chosen.default_size
    return TrainSpec.from_options({"recipe": name, "size": size, **chosen.defaults[size], **options})


def train(spec: TrainSpec, report: Callable[[int, float], None] = lambda step, loss: None) -> Result:
    """Train a recipe's spec here."""
    started = time.perf_counter()
    workload = recipe(spec.recipe).build(spec)
    strategy = PlainStrategy(spec, 0)
    strategy.prepare(workload)
    built = time.perf_counter()
    batches = workload.data.batches(0, 1)
    losses, times = [], []
    for step in range(1, spec.steps + 1):
        before = time.perf_counter()
        losses.append(float(strategy.forward_backward(split(next(batches), spec.accumulate))))
        strategy.step()
        if workload.lr_scheduler is not None:
            workload.lr_scheduler.step()
        times.append(time.perf_counter() - before)
        report(step, losses[-1])
    trained = time.perf_counter()
    evaluation = workload.evaluate(strategy) if workload.evaluate else Evaluation()
    return Result(
        losses=losses,
        step_ms=statistics.median(times) * 1e3,
        build_s=built - started,
        train_s=trained - built,
        evaluate_s=time.perf_counter() - trained,
        tokens_per_second=spec.batch_size * workload.tokens_per_sample / statistics.median(times),
        evaluation=evaluation,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipe", default="stdlib-llama")
    parser.add_argument("--size", default="")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--threads", type=int, default=1)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    options = {name: value for name, value in arguments.items() if value is not None and name not in ("recipe", "size")}
    spec = spec_of(arguments["recipe"], arguments["size"], **options)

    def report(step: int, loss: float) -> None:
        if step == 1 or step % max(1, spec.steps // 10) == 0:
            print(f"step {step:5d}  loss {loss:.4f}", flush=True)

    result = train(spec, report)
    print(f"first loss {result.losses[0]:.4f}  last loss {result.losses[-1]:.4f} after {spec.steps} steps")
    for name, value in result.evaluation.values.items():
        print(f"validation {name}: {value}")
    print(
        f"{result.step_ms:.1f} ms a step, {result.tokens_per_second:,.0f} tokens (or samples) a second; build "
        f"{result.build_s:.1f} s, training {result.train_s:.1f} s, one evaluation {result.evaluate_s:.2f} s"
    )
    for text in result.evaluation.texts:
        print("--- sample", text, sep="\n")


if __name__ == "__main__":
    main()

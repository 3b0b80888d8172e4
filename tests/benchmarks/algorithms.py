"""What an algorithm costs a step beside torch's own communication hooks, and what it sends.

Two CPU ranks train a model by DistributedDataParallel, once for each way to average gradients, block by block in turn.
The network is that of one machine, so this is the cost of encoding, not what a slow network saves. Gradients are one
bucket: with several, torch's PowerSGD ends its processes on gloo (docs/upstream.md).

    python tests/benchmarks/algorithms.py [--rounds 8] [--steps 5] [--width 192]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import describe_machine
from tests.engine.rank_pool import RankPool

#: a way to average -> torch's hook of the same kind; powerSGD_hook keeps its first two steps whole
TORCH = {"none": "torch none", "fp16": "torch fp16", "bf16": "torch bf16", "powersgd:4": "torch powersgd 4"}
OURS = ("fp16", "bf16", "powersgd:4", "int8", "int4", "terngrad", "topk:0.01+ef", "randomk:0.01+ef", "sign+ef")


def _model(width: int) -> Any:
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Linear(width, width) for _ in range(6)]
    return torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.GELU())])


def _with_torch(name: str) -> Callable[[Any], None]:
    """Registers torch's hook."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    def register(ddp: Any) -> None:
        if name == "torch powersgd 4":
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
            ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif name != "torch none":
            kind = name.removeprefix("torch ")
            ddp.register_comm_hook(None, getattr(default_hooks, f"{kind}_compress_hook"))

    return register


def _with_ours(text: str) -> Callable[[Any], None]:
    from workbench.core import algorithms
    from workbench.engine.communication.exchange import GradientExchange

    def register(ddp: Any) -> None:
        parameters = dict(ddp.module.named_parameters())
        chosen = algorithms.chosen(text)
        GradientExchange(chosen, parameters, group=ddp.process_group, seed=0, scale=lambda: 1.0).attach(ddp)

    return register


def rank_blocks(
    rank: int, ranks: int, directory: Path, *, rounds: int, steps: int, width: int
) -> dict[str, list[list[float]]]:
    """Of each way, per round: milliseconds per step by the clock, and of processor time."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from workbench.engine.frameworks.torch.ranks import joined

    with joined(rank, ranks, directory, device_type="cpu"):
        inputs = torch.randn(64, width)
        ways = {name: _with_torch(name) for name in TORCH.values()} | {text: _with_ours(text) for text in OURS}
        trained = {}
        for name, register in ways.items():
            trained[name] = DistributedDataParallel(_model(width))
            register(trained[name])

        def block(ddp: Any) -> list[float]:
            began, busy = time.perf_counter(), time.process_time()
            for _ in range(steps):
                ddp(inputs).square().mean().backward()
                ddp.zero_grad()
            return [(time.perf_counter() - began) * 1e3 / steps, (time.process_time() - busy) * 1e3 / steps]

        for ddp in trained.values():
            block(ddp)
        found: dict[str, list[list[float]]] = {name: [] for name in trained}
        for turn in range(rounds):
            for name in list(trained)[:: 1 if turn % 2 else -1]:
                found[name].append(block(trained[name]))
        trained.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--width", type=int, default=192)
    arguments = parser.parse_args()
    print(describe_machine())
    from workbench.core import algorithms

    with RankPool("torch") as pool:
        found = pool.run(2, "tests.benchmarks.algorithms:rank_blocks", timeout_s=600, **vars(arguments))[0]
    shapes = [(arguments.width, arguments.width), (arguments.width,)] * 6
    whole = sum(4 * arguments.width**2 + 4 * arguments.width for _ in range(6))

    def ratio(name: str, other: str, which: int) -> str:
        ratios = [ours[which] / theirs[which] for ours, theirs in zip(found[name], found[other], strict=True)]
        return f"{statistics.median(ratios):.2f}x"

    plain = statistics.median(each[0] for each in found["torch none"])
    print(f"without an algorithm {plain:.1f} ms a step, {whole:,} bytes")
    for text in OURS:
        sent = algorithms.chosen(text).message_bytes(shapes)
        hook = TORCH.get(text)
        theirs = f"; to torch's hook {ratio(text, hook, 0)}, {ratio(text, hook, 1)} of processor time" if hook else ""
        print(f"{text:16} {whole / sent:6.1f} times fewer bytes; a step to none {ratio(text, 'torch none', 0)}"
              f"{theirs}")  # fmt: skip


if __name__ == "__main__":
    main()

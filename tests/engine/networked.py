"""What ranks do in the tests of emulated networks: train, and note what passes the link, and when it is over."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.engine import communicated
from tests.engine.communicated import RATE, SAMPLES, STEPS, Model, batch
from workbench.core.config import TrainSpec
from workbench.core.network import read
from workbench.engine.entry import joined_of
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.network import emulation
from workbench.engine.network.link import Link
from workbench.engine.network.measure import measured

SPEC = {"framework": "torch", "plugin": "ddp"}


def train(
    rank: int, ranks: int, directory: Path, *, network: str, texts: list[str], local: list[str], token: str = ""
) -> dict[str, Any]:
    """The weights after training with each algorithm ("": whole gradients), and the kind and bytes of what passed."""
    passed: list[tuple[str, float]] = []
    over_at = Link.over_at

    def noted(link: Link, now_s: float, kind: str, members: Any, bytes_: float) -> float:
        passed.append((kind, bytes_))
        return over_at(link, now_s, kind, members, bytes_)

    Link.over_at = noted  # type: ignore[method-assign]
    spec, found = TrainSpec.from_options({"ranks": ranks, **SPEC}), {}
    try:
        with (
            joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token),
            emulation.emulated(read(network) if network else None, "cpu"),
        ):
            for text in ["", *texts, *local]:
                passed.clear()
                if not text:
                    weights = _whole(rank)
                elif text in texts:
                    weights = communicated._trained(rank, text, -1)["weights"][-1]
                else:
                    weights = communicated._stepped(rank, text, "")["weights"][-1]
                found[text] = {"weights": weights, "passed": list(passed)}
            kept = [thread.name for thread in threading.enumerate()]
    finally:
        Link.over_at = over_at  # type: ignore[method-assign]
    left = [thread.name for thread in threading.enumerate() if thread.name == "emulated-network"]
    return {"found": found, "threads": kept, "left": left, "restored": dist.all_reduce.__module__}


def _whole(rank: int) -> dict[str, Any]:
    model = Model()
    ddp = DistributedDataParallel(model)
    reduction = DdpReduction(ddp, afterwards=False, in_sight=True)
    for step in range(STEPS):
        inputs, targets = batch(step, rank)
        with reduction.around(is_last=True):
            loss = (ddp(inputs.float()) - targets.float()).square().sum() / SAMPLES
        loss.backward()
        reduction.finish()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(RATE * parameter.grad)
                parameter.grad = None
    return {name: parameter.tolist() for name, parameter in model.named_parameters()}


def waits(rank: int, ranks: int, directory: Path, *, token: str = "") -> dict[str, Any]:
    """How much later than it may be each way to wait for a collective was over (never before: at least 0)."""
    spec, network = TrainSpec.from_options({"ranks": ranks, **SPEC}), read("8Mbit,5ms")
    with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token), emulation.emulated(network, "cpu"):
        own = dist.new_group(list(range(ranks)), backend="gloo")
        tensor = torch.ones(12_500)  # 50 ms of the link, and 10 ms of latency, on two ranks
        later = {}
        for way in ("blocking", "wait", "future", "both"):
            began = time.monotonic()
            work = dist.all_reduce(tensor, async_op=way != "blocking")
            if way == "both":
                other = dist.all_reduce(torch.ones_like(tensor), async_op=True)
                other.wait()
            if way == "future":
                work.get_future().wait()
            elif work is not None:
                work.wait()
            later[way] = time.monotonic() - began - (0.11 if way == "both" else 0.06)
            assert work is None or work.is_completed()
        passed = []
        Link.over_at, before = (lambda *arguments: passed.append(arguments) or 0.0), Link.over_at  # type: ignore[method-assign]
        try:
            dist.all_reduce(tensor, group=own)
        finally:
            Link.over_at = before  # type: ignore[method-assign]
        return {"later": later, "other_group": len(passed), "measured": measured(network), "sum": tensor[0].item()}

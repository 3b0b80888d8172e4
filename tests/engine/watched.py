"""What ranks do to test what is watched of steps: the real trainer on a small model, its records kept in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from tests.engine import boosted, models
from tests.engine.still_clock import still_clock
from workbench.core.config import TrainSpec
from workbench.core.records import Record
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.frameworks.colossal import plugins as plans
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.sampler import Progress
from workbench.engine.watch.torch.gradient_watch import GradientWatch
from workbench.engine.watch.torch.phases import PhaseWatch
from workbench.rundir.directory import CONTROL_FILE


class Log:
    """Stands for a rank log: keeps what is appended."""

    cost_s = 0.0  # it has no thread

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.records: list[Record] = []
        self.events: list[tuple[str, str, object]] = []

    def append(self, record: Record) -> None:
        self.records.append(record)

    def event(self, kind: str, name: str, value: object = None, **_: Any) -> None:
        self.events.append((kind, name, value))

    def flush(self) -> None: ...

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Type name -> its records as dictionaries."""
        found: dict[str, list[dict[str, Any]]] = {}
        for record in self.records:
            found.setdefault(type(record).__name__, []).append(dataclasses.asdict(record))
        return found


class Batches:
    """The share of a replica of the small models' batches, late by ``delay_s``."""

    def __init__(self, kind: str, delay_s: float) -> None:
        self.kind, self.delay_s = kind, delay_s

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Any]:
        step = start
        while True:
            time.sleep(self.delay_s)
            yield models.part(models.batch(self.kind, step), dp, dp_size)
            step += 1


def delayed(function: Callable[..., Any], delay_s: float) -> Callable[..., Any]:
    def late(*args: Any, **kwargs: Any) -> Any:
        time.sleep(delay_s)
        return function(*args, **kwargs)

    return late


def _slow_down(where: str, delay_s: float, workload: Workload, planted: contextlib.ExitStack) -> None:
    """Plant a delay on this rank; ``planted`` takes away what is not of the workload."""
    if where == "forward":
        workload.model.register_forward_pre_hook(lambda module, args: time.sleep(delay_s))
    elif where == "network":  # DDP's reductions go from C++ to the backend, but for those of a hook
        for name in ("all_reduce", "batch_isend_irecv"):
            planted.enter_context(mock.patch.object(dist, name, delayed(getattr(dist, name), delay_s)))
    elif where == "optimizer":
        workload.optimizer.step = delayed(workload.optimizer.step, delay_s)  # type: ignore[method-assign]


def late_bucket(module: Any, delay_s: float) -> None:
    """DDP hands its buckets over late."""

    def reduce(state, bucket):  # DDP refuses annotations that are text
        time.sleep(delay_s)
        work = module.process_group.allreduce([bucket.buffer().div_(module.process_group.size())])
        return work.get_future().then(lambda future: future.value()[0])

    module.register_comm_hook(None, reduce)


class Buckets:
    """DDP with small buckets, whose reductions take ``delay_s`` longer; keeps when each was begun and done, per step.
    The first layer's backward takes ``2 * delay_s``: it hides the buckets of all later layers, and none of its own."""

    def __init__(self, delay_s: float, planted: contextlib.ExitStack) -> None:
        self.delay_s = delay_s
        self.times: list[dict[str, list[float]]] = []
        make = plans.DdpPlan.make_plugin

        def with_small_buckets(plan: plans.DdpPlan) -> Any:
            plugin = make(plan)
            plugin.ddp_kwargs["bucket_cap_mb"] = 0.01
            return plugin

        planted.enter_context(mock.patch.object(plans.DdpPlan, "make_plugin", with_small_buckets))

    def watch(self, module: Any, first_layer: torch.nn.Module) -> None:
        module.register_comm_hook(module, self.reduce)
        module.register_forward_pre_hook(lambda *_: self.times.append({"begun": [], "done": []}))
        first_layer.register_full_backward_pre_hook(lambda *_: time.sleep(2 * self.delay_s))

    def reduce(self, module, bucket):  # DDP refuses annotations that are text
        now = self.times[-1]
        now["begun"].append(time.perf_counter())
        work = module.process_group.allreduce([bucket.buffer().div_(module.process_group.size())])

        def done(future: Any) -> torch.Tensor:
            time.sleep(self.delay_s)
            now["done"].append(time.perf_counter())
            return future.value()[0]

        return work.get_future().then(done)


def train(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str = "llama",
    options: dict[str, Any],
    steps: int = 6,
    slow: tuple[int, str, float] = (-1, "", 0.0),
    work_s: float = 0.0,
    still: bool = False,
    buckets_s: float = 0.0,
    watching: bool = True,
    gradients: bool = False,
) -> dict[str, Any]:
    """Records of all steps. ``slow``: rank, where, seconds (per step; in the network per call). ``work_s``: sleep in
    every forward, as compute. ``still``: by a ``StillClock``; messages take no time. ``gradients``: watched too.
    ``buckets_s``: that of ``Buckets``, with its ``times``. ``changed``: functions of torch.distributed that are not
    what they were."""
    spec = TrainSpec.from_options(
        {"ranks": ranks, "batch_size": models.BATCH, "steps": steps, "eval_every": 0, "budget": 1.0, **options}
    )
    (directory / CONTROL_FILE).touch()
    slow_rank, where, delay_s = slow
    workload = boosted.workload(model)
    workload.data = Batches(model, delay_s if rank == slow_rank and where == "data" else 0.0)
    before = {name: getattr(dist, name) for name in dir(dist)}
    planted = contextlib.ExitStack()
    sleep = planted.enter_context(still_clock(rank, directory)).sleep if still else time.sleep
    if work_s:
        workload.model.register_forward_pre_hook(lambda module, args: sleep(work_s))
    if rank == slow_rank:
        _slow_down(where, delay_s, workload, planted)
    log = Log(rank)
    buckets = Buckets(buckets_s, planted) if buckets_s else None
    with planted, joined_of(spec)(rank, ranks, directory, device_type="cpu"):
        strategy = load_strategy(spec)(spec, rank)
        strategy.prepare(workload)
        if rank == slow_rank and where in ("hook", "then"):
            module = strategy.reducer()

            def reduce(state, bucket):
                if where == "hook":
                    time.sleep(delay_s)
                work = module.process_group.allreduce([bucket.buffer().div_(module.process_group.size())])

                def done(future):
                    if where == "then":
                        time.sleep(delay_s)
                    return future.value()[0]

                return work.get_future().then(done)

            module.register_comm_hook(None, reduce)
        if rank == slow_rank and where == "network" and strategy.reducer() is not None:
            late_bucket(strategy.reducer(), delay_s)
        if buckets is not None:
            buckets.watch(strategy.reducer(), workload.model.model.layers[0])
        observers: list[StepObserver] = []
        if watching:
            watch = PhaseWatch(spec.monitor, strategy, log)  # type: ignore[arg-type]
            observers = [watch, watch.step_end]
            if gradients:
                observers.insert(1, GradientWatch(spec, strategy, log, torch.device("cpu")))  # type: ignore[arg-type]
        try:
            Trainer(
                run=directory,
                spec=spec,
                workload=workload,
                strategy=strategy,
                control=AgreedControl(directory, exchange_of(rank, ranks)),
                log=log,  # type: ignore[arg-type]
                progress=Progress(),
                observers=observers,
            ).run()
        finally:
            for observer in observers:
                observer.close()
            parameters = [_size(p) for p in strategy.module.parameters()]
            strategy.close()
    changed = [name for name, value in before.items() if getattr(dist, name) is not value]
    times = buckets.times if buckets is not None else []
    return {**log.rows(), "changed": changed, "parameters": parameters, "times": times}


def _size(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()

"""Begins to observe: makes the run directory on rank 0, tells the other ranks, and puts the hooks on."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec
from workbench.engine.agree.exchange import Alone, Exchange
from workbench.engine.agree.shared_slots import PeerLostError
from workbench.engine.observed.agreement import StoreExchange
from workbench.engine.observed.model import in_process, seen_of, wrapper_of
from workbench.engine.observed.run import ObservedRun
from workbench.engine.observed.steered import OnCheckpoint
from workbench.errors import ConfigError, WorkbenchError
from workbench.rundir import directory

#: the plan's framework of observed runs: it is none that ``%dist_train`` could start
FRAMEWORK = "observed"
#: the planned steps of a loop that does not say how many it makes
UNKNOWN_STEPS = 10**6
#: the bytes in which rank 0 tells the run directory
_PATH_BYTES = 4096
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}

#: one for each run that this process observed, on every rank alike
_numbers = itertools.count(1)


def start(
    model: torch.nn.Module,
    optimizer: Any,
    *,
    name: str,
    steps: int | None,
    on_checkpoint: OnCheckpoint | None,
    scaler: Any,
    monitor: MonitorSpec | None,
    patience_s: float,
) -> ObservedRun:
    """As ``workbench.engine.observed.observe.observe``."""
    rank, ranks = _place()
    chosen = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, torch.optim.Optimizer):  # accelerate's, or DeepSpeed's around torch's
        chosen = inner
    if not isinstance(model, torch.nn.Module) or chosen is None:
        raise ConfigError(
            f"observe(model, optimizer): a torch module and a torch optimizer, not {type(model).__name__} and "
            f"{type(optimizer).__name__}"
        )
    called = wrapper_of(model)
    spec = TrainSpec(
        name=name,
        plan=ParallelPlan(ranks=ranks, framework=FRAMEWORK, plugin=seen_of(called, ranks).kind),
        steps=steps or UNKNOWN_STEPS,
        batch_size=0,
        precision=_precision(called),
        eval_every=0,
        final_checkpoint=False,
        monitor=monitor or MonitorSpec(on_nonfinite="go"),
    )
    exchange = _exchange(rank, ranks, patience_s)
    try:
        return ObservedRun(
            _met(spec, exchange),
            spec,
            rank,
            called,
            chosen,
            exchange=exchange,
            patience_s=patience_s,
            scaler=scaler if scaler is not None else _scaler(),
            on_checkpoint=on_checkpoint,
        )
    except PeerLostError as error:
        raise ConfigError(f"workbench.observe: {error}: call it on every one of the {ranks} ranks") from error


def _place() -> tuple[int, int]:
    """Rank and number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    ranks = int(os.environ.get("WORLD_SIZE") or 1)
    if ranks > 1:
        raise ConfigError(
            f"WORLD_SIZE is {ranks}, but torch.distributed is not initialised: call workbench.observe after "
            "init_process_group (or Accelerator())"
        )
    return 0, 1


def _exchange(rank: int, ranks: int, patience_s: float) -> Exchange:
    if ranks == 1:
        return Alone()
    store = dist.PrefixStore(f"workbench-observe-{next(_numbers)}", dist.distributed_c10d._get_default_store())
    return StoreExchange(store, rank, ranks, patience_s=patience_s)


def _met(spec: TrainSpec, exchange: Exchange) -> Path:
    """The run directory, which rank 0 makes. ``WorkbenchError`` on every rank where it cannot."""
    told = b""
    failed: WorkbenchError | None = None
    if exchange.rank == 0:
        try:
            told = b"+" + str(directory.create(spec)).encode()
        except WorkbenchError as error:
            failed, told = error, b"-" + str(error).encode()[: _PATH_BYTES - 1]
    found = exchange.from_rank_0(told.ljust(_PATH_BYTES, b"\0")).rstrip(b"\0")
    if failed is not None:
        raise failed
    if found[:1] != b"+":
        raise ConfigError(f"rank 0 cannot make the run directory: {found[1:].decode(errors='replace')}")
    return Path(found[1:].decode())


def _precision(model: torch.nn.Module) -> str:
    first = next(model.parameters(), None)
    return _PRECISIONS.get(first.dtype, "fp32") if first is not None else "fp32"


def _scaler() -> Any:
    """The only enabled ``GradScaler`` of this process; None where there is none, or more than one."""
    found = [scaler for scaler in in_process(torch.amp.GradScaler) if scaler.is_enabled()]
    return found[0] if len(found) == 1 else None

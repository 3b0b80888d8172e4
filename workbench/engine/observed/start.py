"""Begins to observe: makes the run directory on rank 0, tells the other ranks, and puts the hooks on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from workbench.core.config import MonitorSpec, TrainSpec
from workbench.engine.agree.exchange import Alone, Exchange
from workbench.engine.agree.shared_slots import PeerLostError
from workbench.engine.observed.agreement import StoreExchange
from workbench.engine.observed.model import engine_of, in_process, seen_of, wrapper_of
from workbench.engine.observed.recording import RankRecording
from workbench.engine.observed.run import ObservedRun
from workbench.engine.observed.spec import spec_of
from workbench.engine.observed.steered import OnCheckpoint
from workbench.errors import ConfigError, WorkbenchError
from workbench.rundir import directory

#: what rank 0 says of a meeting to which not all ranks came
_CLOSED = b"closed"
_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def start(
    model: torch.nn.Module,
    optimizer: Any,
    *,
    name: str,
    steps: int | None,
    on_checkpoint: OnCheckpoint | None,
    scaler: Any,
    monitor: MonitorSpec | None,
    timeout_s: float,
    recording: RankRecording | None = None,
    steps_before: int = 0,
) -> ObservedRun:
    """As ``workbench.engine.observed.observe.observe``. ``recording``: of this rank, when it began before.
    ``steps_before``: of the loop, which nobody saw."""
    rank, ranks = _place()
    chosen = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, torch.optim.Optimizer):  # accelerate's, DeepSpeed's or Megatron's around torch's
        chosen = inner
    if not isinstance(model, torch.nn.Module) or chosen is None:
        raise ConfigError(
            f"observe(model, optimizer): a torch module and a torch optimizer, not {type(model).__name__} and "
            f"{type(optimizer).__name__}"
        )
    called = wrapper_of(model)
    engine = engine_of(called, chosen, ranks)
    kind = seen_of(called, engine, ranks).kind
    stages = (
        {} if engine is None or engine.stages == 1 else {"stages": engine.stages, "micro_batches": engine.micro_batches}
    )
    spec = spec_of(name, ranks=ranks, kind=kind, steps=steps, precision=_precision(called), monitor=monitor, **stages)
    exchange: Exchange = Alone()
    own: RankRecording | None = None
    try:
        exchange, path = _meetings.join(spec, rank, timeout_s, recording)
        if recording is None or recording.path != path:
            device = next((str(parameter.device) for parameter in called.parameters()), "cpu")
            recording = own = RankRecording(path, rank, monitor=spec.monitor, device=device)
        return ObservedRun(
            recording,
            spec,
            called,
            chosen,
            engine=engine,
            exchange=exchange,
            timeout_s=timeout_s,
            scaler=scaler if scaler is not None else _scaler(),
            on_checkpoint=on_checkpoint,
            steps_before=steps_before,
        )
    except (PeerLostError, WorkbenchError) as error:
        if rank == 0 and isinstance(exchange, StoreExchange):
            exchange.tell_late(_CLOSED)
        if own is not None:
            own.end("failed", error)
        if isinstance(error, WorkbenchError):
            raise
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


class _Meetings:
    """Where the ranks meet to observe: rank 0 opens one, tells the run directory there, and closes it when not all
    came. A rank that comes later goes on to the next one, and one that came when none was open has been to none."""

    def __init__(self) -> None:
        self._number = 0

    def join(
        self, spec: TrainSpec, rank: int, timeout_s: float, recording: RankRecording | None
    ) -> tuple[Exchange, Path]:
        """How the ranks of this run exchange data, and its directory, which rank 0 has or makes.

        ``WorkbenchError`` on every rank where it cannot; ``PeerLostError`` when rank 0 does not come.
        """
        ranks = spec.plan.ranks
        if ranks == 1:
            return Alone(), directory.create(spec) if recording is None else recording.path
        while True:
            store = dist.distributed_c10d._get_default_store()
            place = dist.PrefixStore(f"workbench-observe-{self._number + 1}", store)
            exchange = StoreExchange(place, rank, ranks, timeout_s=timeout_s)
            if rank == 0:
                self._number += 1
                return exchange, _told(spec, exchange, recording)
            found = exchange.from_rank_0(b"")
            self._number += 1
            if found == _CLOSED:
                continue
            if found[:1] != b"+":
                raise ConfigError(f"rank 0 cannot make the run directory: {found[1:].decode(errors='replace')}")
            return exchange, Path(found[1:].decode())


#: those that this process has been to
_meetings = _Meetings()


def _told(spec: TrainSpec, exchange: Exchange, recording: RankRecording | None) -> Path:
    """The run directory, told to all ranks by rank 0."""
    try:
        path = directory.create(spec) if recording is None else recording.path
    except WorkbenchError as error:
        exchange.from_rank_0(b"-" + str(error).encode())
        raise
    exchange.from_rank_0(b"+" + str(path).encode())
    return path


def _precision(model: torch.nn.Module) -> str:
    first = next(model.parameters(), None)
    return _PRECISIONS.get(first.dtype, "fp32") if first is not None else "fp32"


def _scaler() -> Any:
    """The only enabled ``GradScaler`` of this process; None where there is none, or more than one."""
    found = [scaler for scaler in in_process(torch.amp.GradScaler) if scaler.is_enabled()]
    return found[0] if len(found) == 1 else None

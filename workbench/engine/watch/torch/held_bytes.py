"""Logs once what a rank holds: bytes of its parameters and of its optimizer's state, and how far its memory grew."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

import torch

from workbench.core.records import EventKind
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.tensor import local_part
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.optimizer_state import tensors_in
from workbench.rundir.log import RankLogWriter

#: by then every buffer that a step needs has been used
_STEPS = 2
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
#: what to write there so that the peak of the resident memory counts from now on
_RESET_PEAK = "5"


class HeldBytes(StepObserver):
    """Logs the event ``peak held`` at the end of the second step, or of the run if that comes first."""

    def __init__(self, workload: Workload, log: RankLogWriter) -> None:
        self._workload = workload
        self._log = log
        self._steps = 0
        self._begun = begin_peak()

    def ends(self, step: int) -> None:
        """Count the step; log at the last one that counts."""
        self._steps += 1
        if self._steps == _STEPS:
            self._tell(step)

    def close(self) -> None:
        """Log now, if a step was made and nothing was logged."""
        if 0 < self._steps < _STEPS:
            self._tell(self._steps)

    def _tell(self, step: int) -> None:
        grown = peak() - self._begun if self._begun is not None else None
        value = {**held_bytes(self._workload), "grown": grown}
        self._log.event(EventKind.PEAK, "held", value, step=step)


def held_bytes(workload: Workload) -> dict[str, int]:
    """Bytes of the parameters on this rank, and of the optimizer's state with copies that it updates in their stead."""
    parameters = {id(parameter): parameter for parameter in _parameters(workload)}
    own = {_storage(local_part(parameter)) for parameter in parameters.values()}
    kept: dict[int, torch.Tensor] = {}
    for group in workload.optimizer.param_groups:
        kept |= {id(copy): copy for copy in group["params"] if id(copy) not in parameters}
    copies = [tensor for tensor in map(local_part, kept.values()) if _storage(tensor) not in own]
    state = {id(tensor): tensor for tensor in tensors_in(workload.optimizer.state.values())}
    return {
        "parameters": _bytes(map(local_part, parameters.values())),
        "optimizer_state": _bytes(map(local_part, state.values())) + _bytes(copies),
    }


def _parameters(workload: Workload) -> Iterable[torch.Tensor]:
    yield from workload.model.parameters()
    for found in workload.beside.values():
        yield from found.parameters() if isinstance(found, torch.nn.Module) else [found]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def begin_peak() -> int | None:
    """Let the peak of this rank's memory count from now on, and return what it uses now; None where that cannot be
    known."""
    if rank_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that an earlier run left free would hide the growth
        _CLEAR.write_text(_RESET_PEAK)
        return _status("VmRSS")
    except (OSError, LookupError):  # another system than Linux, or a sandbox
        return None


def peak() -> int:
    """The peak of this rank's memory since ``begin_peak``, in bytes."""
    return int(torch.cuda.max_memory_allocated()) if rank_device().type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)

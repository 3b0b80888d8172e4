"""Records functional collectives, as DTensor calls them: they return a tensor at once and are awaited where it is used.

They pass ``torch.distributed`` by, so they are wrapped where they are defined. Whoever calls them has imported that
module; in other processes it is not loaded.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from workbench.engine.watch.host.clock import Reading
from workbench.engine.watch.host.phase_spans import WORK_PHASES, PhaseRecorder

#: function -> the collective's name, the position of its group, and whether its result is what is counted
FUNCTIONS = {
    "all_reduce": ("all_reduce", 2, False),
    "all_gather_single": ("all_gather", 2, True),
    "all_gather_tensor": ("all_gather", 2, True),
    "reduce_scatter_single": ("reduce_scatter", 3, False),
    "reduce_scatter_tensor": ("reduce_scatter", 3, False),
    "all_to_all_single": ("all_to_all", 3, False),
    "broadcast": ("broadcast", 2, False),
}
#: most calls that nobody has awaited yet; older ones are forgotten
_MOST_PENDING = 256


@dataclass(frozen=True, slots=True)
class _Waiting:
    """``wait_tensor`` of one tensor as the wait of a ``Work``."""

    original: Callable[[torch.Tensor], Any]
    tensor: torch.Tensor

    def wait(self) -> Any:
        return self.original(self.tensor)


class Recorder(Protocol):
    """What records the collectives of a step (``collectives.CollectiveRecorder``)."""

    phases: PhaseRecorder
    recording: bool

    def new_call(self, kind: str, ranks: list[int], tensors: Any, now: Reading) -> list[Any]:
        """Begin to record a call of ``ranks``; nothing where no other rank takes part."""

    def mark_posted(self, calls: list[Any]) -> Reading:
        """The backend has taken the calls over."""

    def wait(self, work: Any, calls: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Wait for ``work``, and record the wait."""


class FunctionalCollectives:
    """Tells ``recorder`` of functional collectives between ``install`` and ``remove``."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        #: address of a result -> the calls that it is of
        self._pending: dict[int, list[Any]] = {}
        self._installed: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}

    def install(self) -> None:
        """Wrap the functions; a second call does nothing."""
        functional = _module()
        if self._installed or functional is None:
            return
        wrappers = {
            name: self._wrap(name, getattr(functional, name)) for name in FUNCTIONS if hasattr(functional, name)
        }
        wrappers["wait_tensor"] = self._wrap_wait(functional.wait_tensor)
        for name, wrapper in wrappers.items():
            self._installed[name] = (getattr(functional, name), wrapper)
            setattr(functional, name, wrapper)

    def remove(self) -> None:
        """Restore the original functions, except those that other code has replaced since."""
        functional = _module()
        for name, (original, wrapper) in self._installed.items():
            if getattr(functional, name) is wrapper:
                setattr(functional, name, original)
        self._installed.clear()
        self._pending.clear()

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        kind, place, counts_result = FUNCTIONS[name]

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            phases = self._recorder.phases
            before = phases.current
            if before[0] not in WORK_PHASES or torch.compiler.is_compiling():
                return original(*args, **kwargs)
            started = phases.enter("communication", before[1])
            try:
                result = original(*args, **kwargs)
                if self._recorder.recording:
                    counted = result if counts_result else args[0]
                    group = args[place] if place < len(args) else kwargs["group"]
                    calls = self._recorder.new_call(kind, _ranks_of(group), counted, started)
                    self._recorder.mark_posted(calls)
                    self._keep(result, calls)
            finally:
                phases.resume(before)
            return result

        return wrapper

    def _keep(self, result: Any, calls: list[Any]) -> None:
        if calls:
            self._pending[_address(result)] = calls
        while len(self._pending) > _MOST_PENDING:
            self._pending.pop(next(iter(self._pending)))

    def _wrap_wait(self, original: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
        @functools.wraps(original)
        def wrapper(tensor: torch.Tensor) -> Any:
            if torch.compiler.is_compiling():
                return original(tensor)
            calls = self._pending.pop(_address(tensor), [])
            return self._recorder.wait(_Waiting(original, tensor), calls, (), {})

        return wrapper


def _module() -> Any:
    """The module of functional collectives; None where nobody has imported it."""
    return sys.modules.get("torch.distributed._functional_collectives")


def _address(tensor: Any) -> int:
    """Where the data of a collective's result are; a result that is still under way has them in ``elem``."""
    return int(getattr(tensor, "elem", tensor).data_ptr())


def _ranks_of(group: Any) -> list[int]:
    """The ranks of what functional collectives take for a group."""
    name = _module()._resolve_group_name(group)
    return dist.get_process_group_ranks(distributed_c10d._resolve_process_group(name))

"""What ranks say to each other: every collective and message that passes through ``torch.distributed``'s functions.

While installed, those functions are wrapped: the time a rank waits for one is a phase of the step, and in the steps
that are recorded each call is a ``CollectiveRecord``. The gradients that torch's DDP reduces never pass through Python;
their figures are those that its reducer keeps (``ReducerLog``).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from workbench.core.mesh import AXES, Mesh
from workbench.core.records import CollectiveRecord
from workbench.engine.watch.host.clock import Reading
from workbench.engine.watch.host.phase_spans import WORK_PHASES, PhaseRecorder


class _Function(NamedTuple):
    """A function of ``torch.distributed``: positions of the tensors that count, of the group, and of the peer."""

    kind: str
    tensors: int | None
    group: int
    peer: int | None = None


FUNCTIONS = {
    "all_reduce": _Function("all_reduce", 0, 2),
    "all_reduce_coalesced": _Function("all_reduce", 0, 2),
    "broadcast": _Function("broadcast", 0, 2),
    "_broadcast_coalesced": _Function("broadcast", 1, 0),  # DDP: buffers, before a forward pass
    "reduce": _Function("reduce", 0, 3),
    "all_gather": _Function("all_gather", 0, 2),
    "all_gather_into_tensor": _Function("all_gather", 0, 2),
    "reduce_scatter": _Function("reduce_scatter", 1, 3),
    "reduce_scatter_tensor": _Function("reduce_scatter", 1, 3),
    "all_to_all": _Function("all_to_all", 1, 2),
    "all_to_all_single": _Function("all_to_all", 1, 4),
    "gather": _Function("gather", 0, 3),
    "scatter": _Function("scatter", 0, 3),
    "barrier": _Function("barrier", None, 0),
    "send": _Function("send", 0, 2, 1),
    "recv": _Function("recv", 0, 2, 1),
}
#: on gloo a blocking call can be handed over first and waited for then, which tells the two apart
_SPLIT = frozenset(FUNCTIONS) - {"send", "recv", "_broadcast_coalesced"}


@dataclass(slots=True)
class _Call:
    kind: str
    group: str
    group_size: int
    bytes: int
    started: Reading
    posted: Reading = None
    done: Reading = None
    waits: list[tuple[Reading, Reading]] = field(default_factory=list)


class _Handle:
    """Stands for the ``Work`` of an asynchronous call; knows when somebody waits for it."""

    def __init__(self, tap: CollectiveTap, work: Any, calls: list[_Call]) -> None:
        self._tap = tap
        self._work = work
        self._calls = calls

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        return self._tap.wait(self._work, self._calls, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class CollectiveTap:
    """Wraps the functions from ``install`` to ``remove``. ``recording``: make records of the calls of this step."""

    def __init__(self, recorder: PhaseRecorder, mesh: Mesh, rank: int, *, split: bool) -> None:
        self.recording = False
        self.calls: list[_Call] = []
        self._recorder = recorder
        self._mesh = mesh
        self._rank = rank
        self._split = split
        self._axes: dict[tuple[int, ...], tuple[str, int]] = {}
        self._installed: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}

    def install(self) -> None:
        """Wrap the functions, once."""
        for name, function in FUNCTIONS.items():
            original = getattr(dist, name, None)
            if original is not None:
                self._place(name, original, self._wrapped(name, original, function))
        self._place("batch_isend_irecv", dist.batch_isend_irecv, self._wrapped_batch(dist.batch_isend_irecv))

    def remove(self) -> None:
        """Put the functions back, except one that somebody else has replaced since."""
        for name, (original, wrapper) in self._installed.items():
            if getattr(dist, name) is wrapper:
                setattr(dist, name, original)
        self._installed.clear()

    def _place(self, name: str, original: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        if name not in self._installed:
            self._installed[name] = (original, wrapper)
            setattr(dist, name, wrapper)

    def _wrapped(self, name: str, original: Callable[..., Any], function: _Function) -> Callable[..., Any]:
        names = _parameter_names(getattr(distributed_c10d, name, original))
        split = self._split and name in _SPLIT and _takes_async_op(original)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            recorder = self._recorder
            before = recorder.current
            if before[0] not in WORK_PHASES or torch.compiler.is_compiling():
                return original(*args, **kwargs)
            started = recorder.enter("communication", before[1])
            calls = self._call(function, names, args, kwargs, started) if self.recording else []
            blocks = split and not _argument(args, kwargs, names, "async_op")
            if blocks:
                args, kwargs = _made_async(args, kwargs, names)
            try:
                result = original(*args, **kwargs)
                now = self._posted(calls)
                if not isinstance(result, dist.Work):
                    self._finished(calls, started, now)
                elif blocks:
                    result.wait()
                    self._finished(calls, started, recorder.clock.now() if calls else None)
                    result = None
                else:
                    self._follow(result, calls)
                    result = _Handle(self, result, calls)
            finally:
                recorder.resume(before)
            return result

        return wrapper

    def _wrapped_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(operations: list[Any]) -> list[Any]:
            recorder = self._recorder
            before = recorder.current
            in_step = before[0] in WORK_PHASES or before[0] in ("bubble", "communication")
            if not in_step or torch.compiler.is_compiling():
                return original(operations)
            calls = [self._message(item) for item in operations] if self.recording else []
            works = original(operations)
            self._posted(calls)
            if len(works) == len(calls):
                return [_Handle(self, work, [call]) for work, call in zip(works, calls, strict=True)]
            return [_Handle(self, work, calls) for work in works]  # NCCL: one for all

        return wrapper

    def wait(self, work: Any, calls: list[_Call], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Wait for an asynchronous call: the part of it that compute did not hide."""
        recorder = self._recorder
        before = recorder.current
        works = before[0] in WORK_PHASES
        if not works and not calls:
            return work.wait(*args, **kwargs)
        began = recorder.enter("communication", before[1]) if works else recorder.clock.now()
        result = work.wait(*args, **kwargs)
        ended = recorder.resume(before) if works else recorder.clock.now()
        for call in calls:
            call.waits.append((began, ended))
        return result

    def _posted(self, calls: list[_Call]) -> Reading:
        """The backend has the calls. Until now the rank could do nothing else, so it is exposed time."""
        if not calls:
            return None
        now = self._recorder.clock.now()
        for call in calls:
            call.posted = now
            call.waits.append((call.started, now))
        return now

    def _finished(self, calls: list[_Call], started: Reading, now: Reading) -> None:
        """A blocking call has returned."""
        for call in calls:
            if call.posted is now:
                call.posted = None  # it blocked from its call on: who took how long of it, nobody knows
            call.done = now
            call.waits[:] = [(started, now)]

    def _follow(self, work: Any, calls: list[_Call]) -> None:
        """Let gloo tell when an operation is complete, which may be long before somebody waits for it."""
        if not calls or not self._split:
            return
        clock, call = self._recorder.clock, calls[0]

        def complete(_: Any) -> None:
            if call.done is None:
                call.done = clock.now()

        # not every operation of gloo has a future; such a one counts as complete when somebody has waited for it
        with contextlib.suppress(RuntimeError):
            work.get_future().add_done_callback(complete)

    def _call(
        self, function: _Function, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], now: Reading
    ) -> list[_Call]:
        def argument(index: int | None) -> Any:
            if index is None:
                return None
            return args[index] if index < len(args) else kwargs.get(names[index]) if index < len(names) else None

        group = argument(function.group)
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            return []
        ranks = dist.get_process_group_ranks(group)
        if function.peer is not None and argument(function.peer) is not None:
            ranks = [self._rank, argument(function.peer)]
        if len(ranks) == 1:
            return []  # nobody to talk to
        call = _Call(function.kind, *self._axis(ranks), _bytes(argument(function.tensors)), now)
        self.calls.append(call)
        return [call]

    def _message(self, operation: Any) -> _Call:
        kind = "send" if operation.op.__name__ == "isend" else "recv"
        name, size = self._axis([self._rank, operation.peer])
        call = _Call(kind, name, size, _bytes(operation.tensor), self._recorder.clock.now())
        self.calls.append(call)
        return call

    def _axis(self, ranks: list[int]) -> tuple[str, int]:
        key = tuple(sorted(ranks))
        if key not in self._axes:
            self._axes[key] = axis_of(list(key), self._mesh)
        return self._axes[key]

    def take(self) -> list[_Call]:
        """The calls of the step; the list starts anew."""
        taken, self.calls = self.calls, []
        return taken


def axis_of(ranks: list[int], mesh: Mesh) -> tuple[str, int]:
    """Name and size of the group of ``ranks``: the mesh axes along which they differ ("dp", "dp+tp").

    "world" for all ranks of a mesh with several axes. Two ranks that exchange messages along an axis are of its group.
    """
    places = [mesh.coordinates(rank) for rank in ranks if rank < mesh.world_size]
    axes = [axis for axis in AXES if len({getattr(place, axis) for place in places}) > 1]
    size = 1
    for axis in axes:
        size *= getattr(mesh, axis)
    if len(axes) > 1 and len(ranks) == mesh.world_size:
        return "world", mesh.world_size
    return "+".join(axes) or "self", max(size, 1)


def records(calls: list[_Call], begin: Reading, clock: Any, step: int, rank: int) -> list[CollectiveRecord]:
    """The calls of a step that began at ``begin``. One that nobody waited for is taken as complete when it was handed
    over, unless the backend told."""
    found = []
    for call in calls:
        done = call.done or (call.waits[-1][1] if call.waits else call.posted)
        found.append(
            CollectiveRecord(
                step=step,
                rank=rank,
                kind=call.kind,
                group=call.group,
                group_size=call.group_size,
                bytes=call.bytes,
                start_ms=clock.elapsed_ms(begin, call.started),
                duration_ms=clock.elapsed_ms(call.started, done),
                exposed_ms=sum(clock.elapsed_ms(began, ended) for began, ended in call.waits),
                post_ms=math.nan if call.posted is None else clock.elapsed_ms(call.started, call.posted),
            )
        )
    return found


class ReducerLog:
    """What torch's DDP knows of its own buckets: they go from C++ to the backend, all during one backward pass.

    Its figures of a step appear at the forward pass of the next one. On a GPU they are kept every hundredth step only,
    as the reducer has to synchronise for them.
    """

    def __init__(self, module: Any, mesh: Mesh, *, on_host: bool) -> None:
        self._module = module
        self.group, self.group_size = axis_of(dist.get_process_group_ranks(module.process_group), mesh)
        self._seen: tuple[int, int] = (0, 0)
        if on_host:
            module._set_ddp_runtime_logging_sample_rate(1)

    def read(self, step: int, rank: int, computed_ms: float) -> CollectiveRecord | None:
        """The reduction of the previous step, ``step``, in which compute was done after ``computed_ms``.

        All buckets are one row: from the first that was handed over until the last was back. None where the reducer
        has no figures of that step.
        """
        told = self._module._get_ddp_logging_data()
        taken = told.get("backward_comm_time", 0), told.get("backward_compute_time", 0)
        if taken == self._seen or not taken[0]:
            return None
        self._seen = taken
        sizes = told.get("rebuilt_bucket_sizes") or told["bucket_sizes"]
        hidden_ms = told.get("backward_compute_comm_overlap_time", 0) / 1e6
        return CollectiveRecord(
            step=step,
            rank=rank,
            kind="all_reduce",
            group=self.group,
            group_size=self.group_size,
            bytes=sum(int(size) for size in sizes.split(",")),
            start_ms=computed_ms - hidden_ms,
            duration_ms=taken[0] / 1e6,
            exposed_ms=taken[0] / 1e6 - hidden_ms,
        )


def _parameter_names(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # built in: called by position only
        return []


def _takes_async_op(function: Callable[..., Any]) -> bool:
    """Also somebody's own wrapper that passes on what it gets."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == "async_op" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str], name: str) -> Any:
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else kwargs.get(name)


def _made_async(
    args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    place = names.index("async_op")
    if place < len(args):
        return (*args[:place], True, *args[place + 1 :]), kwargs
    return args, {**kwargs, "async_op": True}


def _bytes(tensors: Any) -> int:
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(_bytes(tensor) for tensor in tensors) if isinstance(tensors, list | tuple) else 0

"""Records the communication of a rank: collectives and point-to-point messages through ``torch.distributed``.

``CollectiveRecorder`` wraps the functions of ``torch.distributed``. The time that a rank waits for a call is the phase
"communication" of the step; in recorded steps each call also gives a ``CollectiveRecord``. The gradient reduction of
torch's DDP does not pass through Python; its times come from DDP's own reducer (``ddp_reducer``).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from workbench.core.mesh import Mesh, describe_group
from workbench.core.records import CollectiveRecord
from workbench.engine.watch.host.clock import Reading
from workbench.engine.watch.host.phase_spans import WORK_PHASES, PhaseRecorder
from workbench.engine.watch.torch.functional_collectives import FunctionalCollectives


class _Signature(NamedTuple):
    """A function of ``torch.distributed``: the collective's name and the positions of its arguments.

    ``tensors``: the argument whose bytes are counted; ``group``: the process group; ``peer``: the other rank of a
    message.
    """

    kind: str
    tensors: int | None
    group: int
    peer: int | None = None


RECORDED_FUNCTIONS = {
    "all_reduce": _Signature("all_reduce", 0, 2),
    "all_reduce_coalesced": _Signature("all_reduce", 0, 2),
    "broadcast": _Signature("broadcast", 0, 2),
    "_broadcast_coalesced": _Signature("broadcast", 1, 0),  # DDP: buffers, before a forward pass
    "reduce": _Signature("reduce", 0, 3),
    "all_gather": _Signature("all_gather", 0, 2),
    "all_gather_into_tensor": _Signature("all_gather", 0, 2),
    "all_gather_single": _Signature("all_gather", 0, 2),  # torch >= 2.13, as FSDP2 calls it
    "reduce_scatter": _Signature("reduce_scatter", 1, 3),
    "reduce_scatter_single": _Signature("reduce_scatter", 1, 3),
    "reduce_scatter_tensor": _Signature("reduce_scatter", 1, 3),
    "all_to_all": _Signature("all_to_all", 1, 2),
    "all_to_all_single": _Signature("all_to_all", 1, 4),
    "gather": _Signature("gather", 0, 3),
    "scatter": _Signature("scatter", 0, 3),
    "barrier": _Signature("barrier", None, 0),
    "send": _Signature("send", 0, 2, 1),
    "recv": _Signature("recv", 0, 2, 1),
}
#: where torch's pipelines exchange messages
_SCHEDULES = "torch.distributed.pipelining.schedules"
#: with gloo a blocking call can be posted asynchronously and then awaited, so that both times are known
_POSTED_THEN_AWAITED = frozenset(RECORDED_FUNCTIONS) - {"send", "recv", "_broadcast_coalesced"}


@dataclass(slots=True)
class _Call:
    """Readings of one call: ``posted`` when the backend took it over (None: unknown), ``done`` when it was complete
    (None: unknown), ``waits`` the intervals in which the rank waited for it. ``by_future``: whoever waits does so for
    its future, as DDP does for those of a communication hook, unseen here."""

    kind: str
    group: str
    group_size: int
    bytes: int
    started: Reading
    posted: Reading = None
    done: Reading = None
    waits: list[tuple[Reading, Reading]] = field(default_factory=list)
    by_future: bool = False


class _RecordedWork:
    """Replaces the ``Work`` of an asynchronous call and records how long the caller waits for it."""

    def __init__(self, collectives: CollectiveRecorder, work: Any, calls: list[_Call]) -> None:
        self._collectives = collectives
        self._work = work
        self._calls = calls

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        return self._collectives.wait(self._work, self._calls, args, kwargs)

    def get_future(self) -> Any:
        for call in self._calls:
            call.by_future = True
        return self._work.get_future()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


class CollectiveRecorder:
    """Wraps the functions of ``torch.distributed`` between ``install`` and ``remove``.

    ``recorder`` gets the phase "communication" in every step. ``recording``: whether the calls of the current step are
    recorded one by one. ``split``: post blocking calls asynchronously and await them (possible with gloo).
    """

    def __init__(self, recorder: PhaseRecorder, mesh: Mesh, rank: int, *, split: bool) -> None:
        self.recording = False
        self.calls: list[_Call] = []
        self.phases = recorder
        self._mesh = mesh
        self._rank = rank
        self._split = split
        self._groups: dict[tuple[int, ...], tuple[str, int]] = {}
        self._installed: dict[str, tuple[Any, Callable[..., Any], Callable[..., Any]]] = {}
        self._functional = FunctionalCollectives(self)

    def install(self) -> None:
        """Wrap the functions; a second call does nothing."""
        self._functional.install()
        for name, function in RECORDED_FUNCTIONS.items():
            original = getattr(dist, name, None)
            if original is not None:
                self._replace_function(name, original, self._wrap(name, original, function))
        self._replace_function("batch_isend_irecv", dist.batch_isend_irecv, self._wrap_batch(dist.batch_isend_irecv))
        schedules = sys.modules.get(_SCHEDULES)
        if schedules is not None:
            batch = schedules._batch_p2p
            self._replace_function("_batch_p2p", batch, self._wrap_one_way(batch), owner=schedules)

    def remove(self) -> None:
        """Restore the original functions, except those that other code has replaced since."""
        self._functional.remove()
        for name, (owner, original, wrapper) in self._installed.items():
            if getattr(owner, name) is wrapper:
                setattr(owner, name, original)
        self._installed.clear()

    def _replace_function(
        self, name: str, original: Callable[..., Any], wrapper: Callable[..., Any], owner: Any = dist
    ) -> None:
        if name not in self._installed:
            self._installed[name] = (owner, original, wrapper)
            setattr(owner, name, wrapper)

    def _wrap(self, name: str, original: Callable[..., Any], function: _Signature) -> Callable[..., Any]:
        names = parameter_names(getattr(distributed_c10d, name, original))
        split = self._split and name in _POSTED_THEN_AWAITED and _takes_async_op(original)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            recorder = self.phases
            before = recorder.current
            if before[0] not in WORK_PHASES or torch.compiler.is_compiling() or _are_gathered():
                return original(*args, **kwargs)
            started = recorder.enter("communication", before[1])
            calls = self._record_call(function, names, args, kwargs, started) if self.recording else []
            blocks = split and not _argument(args, kwargs, names, "async_op")
            if blocks:
                args, kwargs = _with_async_op(args, kwargs, names)
            try:
                result = original(*args, **kwargs)
                now = self.mark_posted(calls)
                if not isinstance(result, dist.Work):
                    self._mark_done(calls, started, now)
                elif blocks:
                    result.wait()
                    self._mark_done(calls, started, recorder.clock.now() if calls else None)
                    result = None
                else:
                    self._record_completion(result, calls)
                    result = _RecordedWork(self, result, calls)
            finally:
                recorder.resume(before)
            return result

        return wrapper

    def _wrap_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(operations: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
            recorder = self.phases
            before = recorder.current
            in_step = before[0] in WORK_PHASES or before[0] in ("bubble", "communication")
            if not in_step or torch.compiler.is_compiling():
                return original(operations, *args, **kwargs)
            calls = [self._record_message(item) for item in operations] if self.recording else []
            works = original(operations, *args, **kwargs)
            self.mark_posted(calls)
            if len(works) == len(calls):
                return [_RecordedWork(self, work, [call]) for work, call in zip(works, calls, strict=True)]
            return [_RecordedWork(self, work, calls) for work in works]  # NCCL returns one Work for all

        return wrapper

    def _wrap_one_way(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """torch's schedules post messages of one direction without ``batch_isend_irecv``, which they call for others"""
        recorded = self._wrap_batch(original)

        @functools.wraps(original)
        def wrapper(operations: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
            is_one_way = len({operation.op for operation in operations}) == 1
            return (recorded if is_one_way else original)(operations, *args, **kwargs)

        return wrapper

    def wait(self, work: Any, calls: list[_Call], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Wait for an asynchronous call and record the wait, which is the part that computation did not hide."""
        recorder = self.phases
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

    def mark_posted(self, calls: list[_Call]) -> Reading:
        """Record that the backend has taken the calls over. The rank was blocked until now, so this time is exposed."""
        if not calls:
            return None
        now = self.phases.clock.now()
        for call in calls:
            call.posted = now
            call.waits.append((call.started, now))
        return now

    def _mark_done(self, calls: list[_Call], started: Reading, now: Reading) -> None:
        """Record that a blocking call has returned."""
        for call in calls:
            if call.posted is now:
                call.posted = None  # one blocking call: posting and waiting cannot be told apart
            call.done = now
            call.waits[:] = [(started, now)]

    def _record_completion(self, work: Any, calls: list[_Call]) -> None:
        """Record when gloo completes an operation, which may be long before the caller waits for it."""
        if not calls or not self._split:
            return
        clock, call = self.phases.clock, calls[0]

        def complete(_: Any) -> None:
            if call.done is None:
                call.done = clock.now()

        # some gloo operations have no future; those count as complete when the caller has waited for them
        with contextlib.suppress(RuntimeError):
            work.get_future().add_done_callback(complete)

    def _record_call(
        self, function: _Signature, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], now: Reading
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
        return self.new_call(function.kind, ranks, argument(function.tensors), now)

    def new_call(self, kind: str, ranks: list[int], tensors: Any, now: Reading) -> list[_Call]:
        """Record a call of ``ranks`` that began at ``now``; nothing where no other rank takes part."""
        if len(ranks) == 1:
            return []
        call = _Call(kind, *self._group_of(ranks), count_bytes(tensors), now)
        self.calls.append(call)
        return [call]

    def _record_message(self, operation: Any) -> _Call:
        kind = "send" if operation.op.__name__ == "isend" else "recv"
        name, size = self._group_of([self._rank, operation.peer])
        call = _Call(kind, name, size, count_bytes(operation.tensor), self.phases.clock.now())
        self.calls.append(call)
        return call

    def _group_of(self, ranks: list[int]) -> tuple[str, int]:
        key = tuple(sorted(ranks))
        if key not in self._groups:
            self._groups[key] = describe_group(list(key), self._mesh)
        return self._groups[key]

    def take(self) -> list[_Call]:
        """Return the calls of the step and start with an empty list."""
        taken, self.calls = self.calls, []
        return taken


def note_waits(calls: list[_Call], spans: Sequence[tuple[Reading, Reading]], begin: Reading, clock: Any) -> None:
    """Note that in these intervals the rank waited for the futures of calls that were under way."""
    at = functools.partial(clock.elapsed_ms, begin)
    for call in calls:
        if not call.by_future or call.done is None:
            continue
        for first, last in spans:
            since, until = max(call.started, first, key=at), min(call.done, last, key=at)
            if at(since) < at(until):
                call.waits.append((since, until))


def make_records(calls: list[_Call], begin: Reading, clock: Any, step: int, rank: int) -> list[CollectiveRecord]:
    """Make the records of the calls of a step that began at the reading ``begin``.

    A call without a completion time (nobody waited, and the backend reported none) counts as complete when it was
    posted.
    """
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


@functools.cache  # of torch's own functions, which every run asks for
def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments of a function of ``torch.distributed``."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # a built-in function without a signature, called by position only
        return []


def _takes_async_op(function: Callable[..., Any]) -> bool:
    """Whether a function accepts ``async_op``; a wrapper with ``**kwargs`` counts too."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == "async_op" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _are_gathered() -> bool:
    """Whether torch's coalescing manager gathers calls now: it begins them together when it ends, and what they return
    until then cannot be waited for."""
    return bool(distributed_c10d._world.pg_coalesce_state)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str], name: str) -> Any:
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else kwargs.get(name)


def _with_async_op(
    args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    place = names.index("async_op")
    if place < len(args):
        return (*args[:place], True, *args[place + 1 :]), kwargs
    return args, {**kwargs, "async_op": True}


def count_bytes(tensors: Any) -> int:
    """Bytes of tensors in lists and tuples; anything else has none."""
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(count_bytes(tensor) for tensor in tensors) if isinstance(tensors, list | tuple) else 0

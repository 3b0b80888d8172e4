"""Collectives of a rank are recorded in its row, compared with those of the others, and can be broken from within.

``install`` wraps the functions of ``torch.distributed`` in a rank; ``functional`` adds the functional ones. Collectives
that bypass both (DDP's reducer, those of compiled code) are neither recorded nor compared, but broken like others.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from workbench.core.live import current_cell
from workbench.core.live.collective_row import Description, RowReader, RowWriter, group_label, is_message, row_path
from workbench.engine.collectives import messages, sites
from workbench.engine.collectives.connections import Connections
from workbench.engine.collectives.messages import Stream, Streams
from workbench.errors import CollectiveMismatchError, CollectiveReleasedError, format_ranks


class _Function(NamedTuple):
    """Positions and names of the arguments of a collective.

    ``compared``: whether the tensors of all ranks have one size. ``details``: further arguments that are equal.
    ``numbered``: whether all members of the group call it.
    """

    group: int
    tensor: tuple[int, str] | None = None
    compared: bool = False
    details: tuple[tuple[int, str], ...] = ()
    numbered: bool = True


_OP, _SRC, _DST = "op", "src", "dst"
_SUM = "SUM"  # what torch does unless it is told another operation
FUNCTIONS = {
    "all_reduce": _Function(2, (0, "tensor"), True, ((1, _OP),)),
    "broadcast": _Function(2, (0, "tensor"), True, ((1, _SRC),)),
    "reduce": _Function(3, (0, "tensor"), True, ((1, _DST), (2, _OP))),
    "all_gather": _Function(2, (1, "tensor")),  # of tensors that may differ in size
    "all_gather_into_tensor": _Function(2, (1, "input_tensor"), True),
    "all_gather_single": _Function(2, (1, "input"), True),
    "reduce_scatter": _Function(3, (0, "output"), False, ((2, _OP),)),
    "reduce_scatter_tensor": _Function(3, (1, "input"), True, ((2, _OP),)),
    "reduce_scatter_single": _Function(3, (1, "input"), True, ((2, _OP),)),
    "all_to_all": _Function(2),
    "all_to_all_single": _Function(4, (1, "input")),
    "gather": _Function(3, (0, "tensor"), True, ((2, _DST),)),
    "scatter": _Function(3, (0, "tensor"), True, ((2, _SRC),)),
    "barrier": _Function(0),
    "monitored_barrier": _Function(0),
    **dict.fromkeys(messages.SENDS, _Function(2, (0, "tensor"), details=((1, _DST),), numbered=False)),
    **dict.fromkeys(messages.RECEIVES, _Function(2, (0, "tensor"), details=((1, _SRC),), numbered=False)),
}
#: members on each side of this rank, in the order of the group, whose collectives are compared with its own: where
#: the collectives of a group differ at all, those of two neighbours do
_NEIGHBOURS = 4
#: functions that do the same as another -> that one
_SAME = {"all_gather_into_tensor": "all_gather_single", "reduce_scatter_tensor": "reduce_scatter_single"}
#: descriptions of collectives that are kept
_MOST_TEXTS = 4096


class _Group:
    """A group as this rank records it. ``key``: equal on all members, and on no other group of the session.

    ``neighbours``: the members whose collectives are compared with those of this rank.
    """

    def __init__(self, group: Any, epoch: str) -> None:
        self.name = group_label(str(group.group_name), str(group.group_desc))
        self.members = dist.get_process_group_ranks(group)
        self.words = format_ranks(self.members)
        self.key = zlib.crc32(f"{epoch} {group.group_name} {self.members}".encode()) << 8
        self.number = 0
        here, size = self.members.index(dist.get_rank()), len(self.members)
        steps = range(1, min(_NEIGHBOURS, size - 1) + 1)
        self.neighbours = {self.members[(here + sign * step) % size] for step in steps for sign in (1, -1)}
        self._group = weakref.ref(group)  # held, it would keep its connections when it is left, and others would wait

    @property
    def group(self) -> Any:
        """The group of torch; None when it was left."""
        return self._group()


class _Entry(NamedTuple):
    """A call of a collective: its number in its group, its signature, and its description as bytes and in words.

    ``number``: 0: it has none, and is compared with no other.
    """

    group: _Group | Stream
    number: int
    signature: int
    text: bytes
    words: str


class Record:
    """The collectives of the main thread of a rank. ``directory``: that of the rank server, with a row of each rank."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.directory, self.rank = directory, rank
        self.connections = Connections()
        self.waiting_in: _Entry | None = None
        self.failed: dict[int, str] = {}  # ranks that cannot come to a collective of this cell -> why
        self.released = ""  # why a collective was broken
        self.polls = False  # the main thread waits by looking again and again, until it sees ``is_released``
        self.on_broken: Callable[[], None] = lambda: None  # called when a group was broken, from any thread
        self._row = RowWriter(row_path(directory, rank))
        self._readers: dict[int, RowReader] = {}
        self._groups: dict[int, _Group] = {}
        self._streams = Streams(rank)
        self._texts: dict[Any, tuple[int, bytes, str]] = {}
        self._main = threading.main_thread().ident
        self._depth = 0
        self._told_of = 0  # the cell of which ``failed`` and ``released`` tell
        self._works: weakref.WeakKeyDictionary[Any, _Entry] = weakref.WeakKeyDictionary()  # of asynchronous calls

    @property
    def is_released(self) -> bool:
        """Whether a collective of this cell was broken; who ``polls`` is to raise ``CollectiveReleasedError`` then."""
        return bool(self.released) and self._told_of == current_cell.current()

    def note_failures(self, cell: int, failed: dict[int, str]) -> None:
        """Notes which ranks cannot come to a collective of a cell, and forgets what was told of another cell."""
        if cell != self._told_of:
            self._told_of, self.failed, self.released = cell, {}, ""
        self.failed = {**self.failed, **failed}

    def run(self, kind: str, upstream: Callable[..., Any], args: Any, options: Any) -> Any:
        """Calls the collective, recorded. Raises ``CollectiveMismatchError`` before it, where another rank is in
        another one, and ``CollectiveReleasedError`` when it was broken, or a member of the group cannot come."""
        __tracebackhide__ = True
        if self._depth or threading.get_ident() != self._main:
            if kind in messages.KINDS:
                self._streams.note_thread()
            return upstream(*args, **options)
        function = FUNCTIONS[kind]
        group = args[function.group] if len(args) > function.group else options.get("group")
        group = group if isinstance(group, dist.ProcessGroup) else dist.group.WORLD
        if group is None:  # no group yet, which torch says itself
            return upstream(*args, **options)
        try:
            if kind in messages.KINDS:
                result, entry = self._post(kind, group, upstream, args, options)
            else:
                entry = self._entry(kind, group, args, options)
                result = self._wait(entry, upstream, args, options, compares=True)
        except KeyboardInterrupt as interrupt:  # nobody knows whether it was counted, or begun
            self.on_broken()
            raise interrupt.with_traceback(None) from None  # the user's line is enough
        if isinstance(result, dist.Work):
            self._works[result] = entry
        return result

    def _post(self, kind: str, group: Any, upstream: Callable[..., Any], args: Any, options: Any) -> tuple[Any, _Entry]:
        """Sends or receives a message, or begins to: ``run`` for these."""
        __tracebackhide__ = True
        known = self._known(group)
        place = messages.Place.of(kind, group, args, options)
        stream = self._streams.find(group, known.key, known.name, place)
        entry = self._entry(kind, group, args, options, place=place, stream=stream)
        try:
            return self._wait(entry, upstream, args, options, compares=stream is not None), entry
        except Exception as error:
            if stream is not None:
                stream.number -= 1  # it was not posted
            if isinstance(error, CollectiveMismatchError):
                self.on_broken()  # the other end of it may stay posted
            raise

    def await_work(self, upstream: Callable[..., Any], args: Any, options: Any) -> Any:
        """Waits for an asynchronous collective, recorded as the call that began it, if that was recorded."""
        __tracebackhide__ = True
        if self._depth or threading.get_ident() != self._main:
            return upstream(*args, **options)
        entry = self._works.get(args[0])
        if entry is not None:
            return self._wait(entry, upstream, args, options, compares=False)
        try:
            return upstream(*args, **options)
        except RuntimeError as error:
            raise self._explained(error, "a collective") from None

    def _wait(self, entry: _Entry, upstream: Callable[..., Any], args: Any, options: Any, *, compares: bool) -> Any:
        __tracebackhide__ = True
        if self.failed and self._told_of == current_cell.current():
            self._raise_if_missing(entry)
        self._row.enter(entry.group.key, entry.number, entry.signature, entry.text, time.monotonic())
        self.waiting_in = entry
        self._depth += 1
        try:
            if compares:
                self._compare(entry)
            return upstream(*args, **options)
        except RuntimeError as error:
            raise self._explained(error, entry.words) from None
        finally:
            self._depth -= 1
            self.waiting_in = None
            self._row.leave()

    def _explained(self, error: RuntimeError, words: str) -> RuntimeError:
        """Returns the error of a collective, ``words``, or in its place why it was broken."""
        if not self.is_released or isinstance(error, CollectiveMismatchError):
            return error
        return CollectiveReleasedError(f"{self.released}; this rank was released from {words}")

    def _raise_if_missing(self, entry: _Entry) -> None:
        __tracebackhide__ = True
        missing = sorted(self.failed.keys() & set(entry.group.members))
        if missing:
            raise CollectiveReleasedError(f"{self.failed[missing[0]]}; this rank did not enter {entry.words}")

    def _entry(
        self,
        kind: str,
        group: Any,
        args: Any,
        options: Any,
        *,
        place: messages.Place | None = None,
        stream: Stream | None = None,
    ) -> _Entry:
        known, function, frame, tensor = self._known(group), FUNCTIONS[kind], sites.calling_frame(), None
        if function.tensor is not None:
            position, name = function.tensor
            tensor = args[position] if len(args) > position else options.get(name)
            tensor = tensor if isinstance(tensor, torch.Tensor) else None
        given = tuple([args[at] if len(args) > at else options.get(name) for at, name in function.details])
        there = options.get("group_src"), options.get("group_dst")
        shape, dtype = (tensor.shape, tensor.dtype) if tensor is not None else (None, None)
        called = (kind, known.key, shape, dtype, frame.f_code, frame.f_lineno, given, there)
        told = self._texts.get(called)
        if told is None:
            names = [name for _, name in function.details]
            details = [_told(name, value, group, options) for name, value in zip(names, given, strict=True)]
            detail = _in_words(names, details) if place is None else str(place)
            words = known.words if stream is None else stream.words
            description = _described(kind, known.name, words, tensor, detail, place=sites.in_words(frame))
            compared = _signature(kind, tensor, detail) if stream is None else messages.signature(tensor)
            told = (compared, description.encode(), str(description))
            if len(self._texts) < _MOST_TEXTS:
                self._texts[called] = told
        counted = known if function.numbered else stream
        if counted is None:
            return _Entry(known, 0, *told)
        counted.number += 1
        return _Entry(counted, counted.number, *told)

    def _known(self, group: Any) -> _Group:
        known = self._groups.get(id(group))
        if known is None or known.group is not group:
            known = self._groups[id(group)] = _Group(group, self.connections.epoch)
        return known

    def make_group(self, make: Callable[..., Any], args: Any, options: Any) -> Any:
        """Makes a group with torch's own function. A new default group takes the place of all groups."""
        if not dist.is_initialized():
            self._groups.clear()
            self._streams.forget()
            self._texts.clear()
        return self.connections.noting(make, args, options)

    def _compare(self, entry: _Entry) -> None:
        __tracebackhide__ = True
        known, number = entry.group, entry.number
        for peer in known.neighbours:
            reader = self._reader(peer)
            theirs = None if reader is None else reader.signature(known.key, number)
            if reader is not None and theirs is not None and theirs != entry.signature:
                other = reader.describe(known.key, number)
                raise CollectiveMismatchError(
                    f"{'message' if is_message(known.key) else 'collective'} {number} of group {known.name} "
                    f"({known.words}) differs between ranks: rank {self.rank} calls {entry.words}; rank {peer} calls "
                    f"{other}. Call the same collectives, with tensors of one size and dtype, in the same order on all "
                    "ranks of the group, and receive messages as they are sent"
                )

    def _reader(self, rank: int) -> RowReader | None:
        if rank not in self._readers:
            try:
                self._readers[rank] = RowReader(row_path(self.directory, rank))
            except OSError:
                return None
        return self._readers[rank]


def _told(name: str, value: Any, group: Any, options: Any) -> Any:
    """Returns an argument as all ranks name it: ranks may leave out what torch does by itself, and may name the other
    rank by its number in the group."""
    if value is not None:
        return value
    if name == _OP:
        return _SUM
    there = options.get(f"group_{name}")
    return 0 if there is None else dist.get_global_rank(group, there)


def _in_words(names: list[str], details: list[Any]) -> str:
    pairs = zip(names, details, strict=True)
    return ", ".join(f"{name} {str(value).rpartition('.')[2]}" for name, value in pairs if value is not None)


def _described(kind: str, name: str, members: str, tensor: Any, detail: str, *, place: str) -> Description:
    return Description(
        kind=kind,
        group=name,
        members=members,
        shape="x".join(map(str, tensor.shape)) or "1" if tensor is not None else "",
        dtype=str(tensor.dtype).rpartition(".")[2] if tensor is not None else "",
        byte_count=tensor.numel() * tensor.element_size() if tensor is not None else 0,
        detail=detail,
        place=place,
    )


def _signature(kind: str, tensor: Any, detail: str) -> int:
    """Returns a number that differs between calls that do not match: of another function, operation, size or dtype."""
    compared = (tensor.numel(), tensor.dtype) if FUNCTIONS[kind].compared and tensor is not None else ""
    return zlib.crc32(f"{_SAME.get(kind, kind)} {compared} {detail}".encode())


#: the record of this process, once it is a rank
_record: list[Record] = []


def current() -> Record | None:
    """Returns the record of this rank, or None in a process that is none."""
    return _record[0] if _record else None


def _recorded(kind: str, upstream: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstream)
    def collective(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if not _record or torch.compiler.is_compiling():
            return upstream(*args, **options)
        return _record[0].run(kind, upstream, args, options)

    return collective


def _wrap() -> None:
    """Wraps the functions of ``torch.distributed``, once per process; they change nothing until it is a rank."""
    for kind in FUNCTIONS:
        upstream = getattr(distributed_c10d, kind, None)
        if upstream is not None:
            wrapped = _recorded(kind, upstream)
            setattr(distributed_c10d, kind, wrapped)
            setattr(dist, kind, wrapped)
    wait = dist.Work.wait

    def wait_recorded(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return _record[0].await_work(wait, args, options) if _record else wait(*args, **options)

    dist.Work.wait = wait_recorded  # type: ignore[method-assign]
    make = distributed_c10d._new_process_group_helper

    @functools.wraps(make)
    def make_group(*args: Any, **options: Any) -> Any:
        return _record[0].make_group(make, args, options) if _record else make(*args, **options)

    distributed_c10d._new_process_group_helper = make_group


def install(directory: str | Path) -> None:
    """Records the collectives of this process, which is a rank, in its row in ``directory``."""
    if not _record:
        _wrap()
    _record[:] = [Record(Path(directory), int(os.environ["RANK"]))]

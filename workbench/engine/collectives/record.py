"""Collectives of a rank are recorded in its row, compared with those of the others, and can be broken from within.

``install`` wraps the functions of ``torch.distributed`` in a rank. Collectives that bypass these (functional ones of
FSDP2 and DTensor, DDP's reducer) are neither recorded nor compared, but broken like others.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from workbench.core.live.collective_row import Description, RowReader, RowWriter, row_path
from workbench.engine.collectives import sites
from workbench.engine.collectives.connections import Connections
from workbench.errors import CollectiveMismatchError, CollectiveReleasedError, format_ranks


class _Function(NamedTuple):
    """Positions and names of a collective's arguments. ``compared``: whether tensors of all ranks have one size."""

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
    "send": _Function(2, (0, "tensor"), numbered=False),
    "recv": _Function(2, (0, "tensor"), numbered=False),
}
#: members on each side of this rank, in the order of the group, whose collectives are compared with its own: where
#: the collectives of a group differ at all, those of two neighbours do
_NEIGHBOURS = 4
#: descriptions of collectives that are kept
_MOST_TEXTS = 4096


class _Group:
    """A group as this rank records it. ``key``: equal on all members, and on no other group of the session.

    ``neighbours``: the members whose collectives are compared with those of this rank.
    """

    def __init__(self, group: Any, epoch: str) -> None:
        self.name = str(group.group_name)
        self.members = dist.get_process_group_ranks(group)
        self.words = format_ranks(self.members)
        self.key = zlib.crc32(f"{epoch} {self.name} {self.members}".encode()) << 8
        self.number = 0
        here, size = self.members.index(dist.get_rank()), len(self.members)
        steps = range(1, min(_NEIGHBOURS, size - 1) + 1)
        self.neighbours = {self.members[(here + sign * step) % size] for step in steps for sign in (1, -1)}


class _Entered(NamedTuple):
    """A collective as this rank entered it. ``row``: key of its group, number, signature and text, as in its slot."""

    group: Any
    known: _Group
    words: str
    row: tuple[int, int, int, bytes]


class Record:
    """The collectives of the main thread of a rank. ``directory``: that of the rank server, with a row of each rank."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.directory, self.rank = directory, rank
        self.connections = Connections()
        self.waiting_in: _Entered | None = None
        self.failed: dict[int, str] = {}  # ranks that cannot come to a collective of this cell -> why
        self.released = ""  # why a collective was broken
        self.on_broken: Callable[[], None] = lambda: None  # called when a group was broken, from any thread
        self._row = RowWriter(row_path(directory, rank))
        self._readers: dict[int, RowReader] = {}
        self._groups: dict[int, _Group] = {}
        self._texts: dict[Any, tuple[int, bytes, str]] = {}
        self._main = threading.main_thread().ident
        self._depth = 0
        self._last: _Entered | None = None

    def begin_cell(self) -> None:
        """Forgets what was told about the last cell."""
        self.failed.clear()
        self.released = ""

    def run(self, kind: str, function: _Function, upstream: Callable[..., Any], args: Any, options: Any) -> Any:
        """Calls the collective, recorded. Raises ``CollectiveMismatchError`` before it, where another rank is in
        another one, and ``CollectiveReleasedError`` when it was broken, or a member of the group cannot come."""
        if self._depth or threading.get_ident() != self._main:
            return upstream(*args, **options)
        group = args[function.group] if len(args) > function.group else options.get("group")
        group = group if isinstance(group, dist.ProcessGroup) else dist.group.WORLD
        if group is None:  # no group yet, which torch says itself
            return upstream(*args, **options)
        self._last = self._entered(kind, function, group, args, options)
        return self._wait(self._last, upstream, args, options, compares=function.numbered)

    def await_work(self, upstream: Callable[..., Any], work: Any, args: Any, options: Any) -> Any:
        """Waits for an asynchronous collective, recorded as the last one that was called."""
        if self._depth or self._last is None or threading.get_ident() != self._main:
            return upstream(work, *args, **options)
        return self._wait(self._last, upstream, (work, *args), options, compares=False)

    def _wait(self, entered: _Entered, upstream: Callable[..., Any], args: Any, options: Any, *, compares: bool) -> Any:
        if self.failed:
            self._raise_if_missing(entered.known, entered.words)
        self._row.enter(*entered.row, time.monotonic())
        self.waiting_in = entered
        self._depth += 1
        try:
            if compares:
                self._compare(entered)
            return upstream(*args, **options)
        except CollectiveMismatchError:
            raise
        except RuntimeError:
            if self.released:
                raise CollectiveReleasedError(f"{self.released}; this rank was released from {entered.words}") from None
            raise
        finally:
            self._depth -= 1
            self.waiting_in = None
            self._row.leave()

    def _raise_if_missing(self, known: _Group, words: str) -> None:
        missing = sorted(self.failed.keys() & set(known.members))
        if missing:
            raise CollectiveReleasedError(f"{self.failed[missing[0]]}; this rank did not enter {words}")

    def _entered(self, kind: str, function: _Function, group: Any, args: Any, options: Any) -> _Entered:
        known, frame = self._known(group), sites.calling_frame()
        tensor = None
        if function.tensor is not None:
            position, name = function.tensor
            tensor = args[position] if len(args) > position else options.get(name)
            tensor = tensor if isinstance(tensor, torch.Tensor) else None
        details = [
            args[at] if len(args) > at else options.get(name, _SUM if name == _OP else None)
            for at, name in function.details
        ]
        shape, dtype = (tensor.shape, tensor.dtype) if tensor is not None else (None, None)
        cached = (kind, known.key, shape, dtype, frame.f_code, frame.f_lineno, *map(str, details))
        text = self._texts.get(cached)
        if text is None:
            text = _described(kind, function, known, tensor, details=details, place=sites.in_words(frame))
            if len(self._texts) < _MOST_TEXTS:
                self._texts[cached] = text
        signature, encoded, words = text
        known.number += function.numbered
        return _Entered(group, known, words, (known.key, known.number if function.numbered else 0, signature, encoded))

    def _known(self, group: Any) -> _Group:
        known = self._groups.get(id(group))
        if known is None or known.name != group.group_name:
            known = self._groups[id(group)] = _Group(group, self.connections.epoch)
        return known

    def make_group(self, make: Callable[..., Any], args: Any, options: Any) -> Any:
        """Makes a group with torch's own function. A new default group takes the place of all groups."""
        if not dist.is_initialized():
            self._groups.clear()
            self._texts.clear()
            self._last = None
        return self.connections.noting(make, args, options)

    def _compare(self, entered: _Entered) -> None:
        known, (key, number, signature, _) = entered.known, entered.row
        for peer in known.neighbours:
            reader = self._reader(peer)
            theirs = None if reader is None else reader.signature(key, number)
            if reader is not None and theirs is not None and theirs != signature:
                other = reader.describe(key, number)
                raise CollectiveMismatchError(
                    f"collective {number} of group {known.name} ({known.words}) differs between ranks: rank "
                    f"{self.rank} calls {entered.words}; rank {peer} calls {other}. Call the same collectives, with "
                    "tensors of one size and dtype, in the same order on all ranks of the group"
                )

    def _reader(self, rank: int) -> RowReader | None:
        if rank not in self._readers:
            try:
                self._readers[rank] = RowReader(row_path(self.directory, rank))
            except OSError:
                return None
        return self._readers[rank]


def _described(
    kind: str, function: _Function, known: _Group, tensor: Any, *, details: list[Any], place: str
) -> tuple[int, bytes, str]:
    detail = ", ".join(
        f"{name} {str(value).rpartition('.')[2]}"
        for (_, name), value in zip(function.details, details, strict=True)
        if value is not None
    )
    description = Description(
        kind=kind,
        group=known.name,
        members=known.words,
        shape="x".join(map(str, tensor.shape)) or "1" if tensor is not None else "",
        dtype=str(tensor.dtype).rpartition(".")[2] if tensor is not None else "",
        byte_count=tensor.numel() * tensor.element_size() if tensor is not None else 0,
        detail=detail,
        place=place,
    )
    compared = (tensor.numel(), tensor.dtype) if function.compared and tensor is not None else ""
    return zlib.crc32(f"{kind} {compared} {detail}".encode()), description.encode(), str(description)


#: the record of this process, once it is a rank
_record: list[Record] = []


def current() -> Record | None:
    """Returns the record of this rank, or None in a process that is none."""
    return _record[0] if _record else None


def _recorded(kind: str, upstream: Callable[..., Any]) -> Callable[..., Any]:
    function = FUNCTIONS[kind]

    @functools.wraps(upstream)
    def collective(*args: Any, **options: Any) -> Any:
        if not _record or torch.compiler.is_compiling():
            return upstream(*args, **options)
        return _record[0].run(kind, function, upstream, args, options)

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

    def wait_recorded(self: Any, *args: Any, **options: Any) -> Any:
        return _record[0].await_work(wait, self, args, options) if _record else wait(self, *args, **options)

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

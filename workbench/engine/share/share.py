"""``share(data)``: arrays of a data set once per host, mapped into the memory of all its ranks.

One rank of each host writes the arrays into memory that has no name in any file system (Linux' memfd), and the others
map it. The kernel frees it when the last rank ends, however it ends. Pages are copy-on-write: what a rank writes to, it
has for itself from then on.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.engine.share.members import Members
from workbench.engine.share.regions import note_region
from workbench.errors import ConfigError

_ALIGNMENT = 64
#: what is no array is copied by every rank, so there should be little of it
_MOST_OTHER_BYTES = 16 * 2**20


class ShareFailed(RuntimeError):
    """Another rank could not load or map what was to be shared."""


def share(data: Any) -> Any:
    """Return ``data``, with its arrays in memory that all ranks of this host have in common.

    ``data``: a NumPy array, a tensor, or lists, tuples, dicts and objects of them, such as a ``TensorDataset``; or a
    function without arguments that returns one, which is then called by one rank per host only. Every rank of the
    training, or of the ``%%dist`` cell, calls this at the same time. What a rank writes to an array, it alone sees.

    Raises ``ConfigError`` for data without arrays or with much else, and ``ShareFailed`` on the other ranks when one
    cannot load or map the data, whose own error is raised on it.
    """
    members = Members.here()
    host = _host()
    hosts = members.gathered(host)
    loads = hosts.index(host) == members.place
    written: tuple[int, int, bytes] | None = None
    error: BaseException | None = None
    if loads:
        try:
            written = _written(data() if _is_function(data) else data)
        except BaseException as raised:  # raised below, when the others know
            error = raised
    try:
        place = None if written is None else (os.getpid(), written[0], written[1], written[2])
        found = _agreed(place, error, members)
        result: Any = None
        try:
            result = _mapped(*found[hosts.index(host)], own=loads)
        except BaseException as raised:
            error = raised
        _agreed(None, error, members)
        return result
    finally:
        if written is not None:
            os.close(written[0])  # the mappings hold the memory


def _is_function(data: Any) -> bool:
    return callable(data) and not isinstance(data, torch.nn.Module) and not hasattr(data, "__getitem__")


def _host() -> tuple[str, str, str]:
    """Alike for processes that can open each other's files in ``/proc``."""
    if not hasattr(os, "memfd_create"):
        raise ConfigError("share() needs Linux, for memory that ends with the ranks: leave it out", field="share")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")


def _agreed(value: Any, error: BaseException | None, members: Members) -> list[Any]:
    """What every rank passes; when one has an error, all raise. Collective."""
    text = None if error is None else f"{type(error).__name__}: {error}"
    found = members.gathered((text, value))
    if error is not None:
        raise error
    for other, (failure, _) in zip(members.ranks, found, strict=True):
        if failure is not None:
            raise ShareFailed(f"share() failed on rank {other}: {failure}")
    return [passed for _, passed in found]


def _written(data: Any) -> tuple[int, int, bytes]:
    """File descriptor and size of new memory with the arrays of ``data``, and the rest of it, pickled."""
    arrays, rest = _taken_apart(data)
    if not arrays:
        raise ConfigError(
            f"share() got a {type(data).__name__} without arrays: pass NumPy arrays, tensors, or lists, dicts or a "
            "TensorDataset of them; of a pandas table {name: table[name].to_numpy() for name in table}",
            field="share",
        )
    size = max(1, *(place.start + place.size for _, place in arrays))
    descriptor = os.memfd_create("workbench-share", os.MFD_CLOEXEC)
    try:
        os.truncate(descriptor, size)
        with mmap.mmap(descriptor, size) as memory:
            for array, place in (pair for pair in arrays if pair[1].size):
                target = np.frombuffer(memory, np.uint8, place.size, place.start)
                target[:] = _bytes_of(array)
                del target  # the mapping cannot be closed while it is used
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, size, rest


def _taken_apart(data: Any) -> tuple[list[tuple[Any, _Place]], bytes]:
    """The arrays in ``data`` with their places, each once, and the rest as pickled bytes that refer to the places."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    try:
        pickler.dump(data)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"share() cannot pass on what surrounds the arrays ({error}): share the arrays alone, as in "
            'data = share({"x": x, "y": y}), and make the dataset of them',
            field="share",
        ) from error
    if stream.tell() > _MOST_OTHER_BYTES:
        raise ConfigError(
            f"share() got {stream.tell() / 2**20:.0f} MiB of Python objects beside the arrays, which every rank would "
            "copy: convert them to arrays, or keep them in a file",
            field="share",
        )
    return list(pickler.arrays.values()), stream.getvalue()


class _Pickler(pickle.Pickler):
    """Puts each array into ``arrays``, with its place, and the place in its stead. (A class in a function would be part
    of a cycle with what it refers to, so that the arrays stayed in memory until the garbage collector finds it.)"""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.arrays: dict[int, tuple[Any, _Place]] = {}
        self._end = 0

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray | torch.Tensor):
            return None
        if id(value) not in self.arrays:
            place = _Place.of(value, self._end)
            self._end += -(-place.size // _ALIGNMENT) * _ALIGNMENT
            self.arrays[id(value)] = value, place
        return self.arrays[id(value)][1]


class _Place:
    """Stands for an array: its bytes from ``start``, its shape and type."""

    def __init__(self, kind: str, start: int, size: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.kind, self.start, self.size, self.shape, self.dtype = kind, start, size, shape, dtype

    @classmethod
    def of(cls, array: Any, start: int) -> _Place:
        """The place of ``array``; ``ConfigError`` for one that is not made of plain numbers."""
        if isinstance(array, torch.Tensor):
            if array.layout != torch.strided or array.device.type == "meta" or array.is_quantized:
                raise ConfigError(f"share() takes dense tensors, not {array.layout}", field="share")
            return cls("tensor", start, array.numel() * array.element_size(), tuple(array.shape), array.dtype)
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            what = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise ConfigError(f"share() takes arrays of numbers, not {what}", field="share")
        return cls("array", start, array.nbytes, array.shape, array.dtype)

    def read(self, memory: mmap.mmap) -> Any:
        """The array in the mapped ``memory``, which lives as long as the array."""
        if not self.size:
            return (np if self.kind == "array" else torch).empty(self.shape, dtype=self.dtype)
        if self.kind == "array":
            return np.frombuffer(memory, np.uint8, self.size, self.start).view(self.dtype).reshape(self.shape)
        flat = torch.frombuffer(memory, dtype=torch.uint8, count=self.size, offset=self.start)
        return flat.view(self.dtype).reshape(self.shape)


def _bytes_of(array: Any) -> Any:
    if isinstance(array, torch.Tensor):
        return array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _mapped(process: int, descriptor: int, size: int, rest: bytes, *, own: bool) -> Any:
    """The data in the memory that ``process`` of this host has as ``descriptor``."""
    opened = descriptor if own else os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory = mmap.mmap(opened, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        if not own:
            os.close(opened)
    first = np.frombuffer(memory, np.uint8).ctypes.data
    note_region(memory, first, first + size)
    return _Unpickler(rest, memory).load()


class _Unpickler(pickle.Unpickler):
    """Puts the arrays of ``memory`` in the stead of their places."""

    def __init__(self, rest: bytes, memory: mmap.mmap) -> None:
        super().__init__(io.BytesIO(rest))
        self._memory = memory
        self._found: dict[int, Any] = {}

    def persistent_load(self, place: Any) -> Any:
        return self._found.setdefault(id(place), place.read(self._memory))

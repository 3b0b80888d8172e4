"""The connections of process groups, so that one group can be broken while the others work on."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


class Connections:
    """The sockets that gloo opened for each group.

    ``epoch``: a random word that all ranks of the default group share.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self._sockets: list[tuple[weakref.ref[Any], list[tuple[int, str]]]] = []  # group, (descriptor, what it was)

    def noting(self, make: Callable[..., Any], args: Any, options: Any) -> Any:
        """Makes a group with torch's own function, and notes the sockets that came with it."""
        store = options.get("store", args[4] if len(args) > 4 else None)
        if not dist.is_initialized() and store is not None:
            self._sockets.clear()
            self.epoch = store.compare_set("workbench/epoch", "", secrets.token_hex(8)).decode()
        before = set(_sockets())
        made = make(*args, **options)
        group = made[0]
        if isinstance(group, dist.ProcessGroup):
            port = _port(store)
            new = [found for found in _sockets() if found not in before and not _reaches(found[0], port)]
            self._sockets.append((weakref.ref(group), new))
        return made

    def groups(self) -> list[Any]:
        """Returns the groups that are known and exist."""
        return [group for known, _ in self._sockets if (group := known()) is not None]

    def shut(self, group: Any) -> None:
        """Ends the connections of a group: whoever waits in a collective of it gets a ``RuntimeError`` at once.

        The group can't be used any more. Other groups work on.
        """
        if "nccl" in dist.get_backend(group):
            group._get_backend(torch.device("cuda")).abort()
            return
        present = set(_sockets())
        for known, sockets in self._sockets:
            if known() is group:
                for found in present.intersection(sockets):
                    _shut(found[0])


def _sockets() -> list[tuple[int, str]]:
    """Returns the sockets of this process: descriptor, and the number of the socket itself in words."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found.append((int(name), target))
    return found


def _port(store: Any) -> int:
    """Returns the port of the store that a group meets at; 0: it has none."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return getattr(store, "port", 0)


def _reaches(descriptor: int, port: int) -> bool:
    """Returns whether a socket is a connection of the store at ``port``, or none over TCP."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        if copy.family not in (socket.AF_INET, socket.AF_INET6):
            return True
        ports = [copy.getsockname()[1]]
        with contextlib.suppress(OSError):  # it listens
            ports.append(copy.getpeername()[1])
        return port in ports
    return True


def _shut(descriptor: int) -> None:
    """Shuts a connection down; leaves a listening socket, whose end gloo answers by ending the process."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        if not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            copy.shutdown(socket.SHUT_RDWR)

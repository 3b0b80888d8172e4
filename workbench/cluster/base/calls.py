"""Calls of functions in a thread of a rank, while its main thread runs a cell or waits in a collective.

The rank server sends each call as a datagram to a Unix socket of the rank in the server's directory.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from workbench.cluster.base.protocol import CallInRanks, decode, encode
from workbench.core import background
from workbench.errors import format_ranks

_MOST_BYTES = 1 << 16


def _path(directory: Path, rank: int) -> str:
    return str(directory / f"call-{rank:05d}")


def serve_calls(directory: Path, rank: int) -> None:
    """Starts the thread of this process, a rank, that answers calls."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = Path(_path(directory, rank))
    path.unlink(missing_ok=True)  # of a rank that died
    listener.bind(str(path))
    rounds = background.Rounds(background.warner("a call in this rank failed"))

    def serve() -> None:
        while True:
            with rounds:
                _call(decode(listener.recv(_MOST_BYTES)))

    background.thread(serve, name="rank-calls", failed=background.warner("this rank answers no more calls")).start()


def _call(request: CallInRanks) -> None:
    module, _, name = request.function.partition(":")
    if module in sys.modules:
        getattr(sys.modules[module], name)(**request.arguments)


def call_in_ranks(directory: Path, request: CallInRanks) -> str:
    """Tells the ranks of a request to call its function; those that have ended call nothing, and those that have not
    answered the ten calls before it, as in native code that holds the interpreter's lock, need not be told once more.

    Returns "", or which ranks cannot be told and why.
    """
    line, failed = encode(request), {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for rank in request.ranks:
            try:
                sender.sendto(line, _path(directory, rank))
            except (ConnectionRefusedError, BlockingIOError):
                continue  # it has ended, which its server tells; or earlier calls wait until it can run Python
            except OSError as error:
                failed[rank] = error.strerror or str(error)
    return f"{format_ranks(failed)} cannot be told: {next(iter(failed.values()))}" if failed else ""

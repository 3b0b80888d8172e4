"""The socket between pdb on a rank, which listens, and whoever types commands: one JSON object per line.

The rank sends ``{"text": what pdb printed, "place": where it stands, "asks": whether it waits for a command}``, and
gets ``{"line": a command of pdb}`` or ``{"leave": how}``.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

#: how a rank leaves the debugger without a command: it goes on and passes further breakpoints over, or its cell is
#: interrupted
GO_ON, INTERRUPT = "go on", "interrupt"
_CHUNK_BYTES = 1 << 16


def prompt_path(directory: Path, rank: int) -> Path:
    """Returns the socket of a rank that stands in the debugger. ``directory``: that of the rank server."""
    return directory / f"debug-{rank:05d}"


class Leave(BaseException):
    """Whoever typed commands has left the debugger."""


class Lines:
    """Messages over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""
        self._whole: list[dict[str, Any]] = []

    def send(self, **message: Any) -> None:
        """Sends a message. Raises ``OSError`` when the other side has gone."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def next(self) -> dict[str, Any] | None:
        """Waits for a message as long as the socket's timeout says; None when the other side has gone.

        Raises ``TimeoutError`` or ``BlockingIOError`` when none came, and other ``OSError``.
        """
        while not self._whole:
            data = self.connection.recv(_CHUNK_BYTES)
            if not data:
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._whole += map(json.loads, lines)
        return self._whole.pop(0)


class Prompt:
    """Standard input and output of pdb on a rank. ``place``: where the rank stands, in words."""

    def __init__(self, path: Path) -> None:
        self.place = ""
        self._path = path
        self._listener: socket.socket | None = None
        self._client: Lines | None = None
        self._text: list[str] = []

    def write(self, text: str) -> int:
        """Takes a part of what pdb prints; it is sent with the next prompt."""
        self._text.append(text)
        return len(text)

    def flush(self) -> None:
        """Does nothing: see ``write``."""

    def readline(self) -> str:
        """Returns the next command, however long it takes until somebody connects and types one.

        Raises ``Leave`` or ``KeyboardInterrupt`` when they leave.
        """
        while True:
            client = self._client or self._accepted()
            try:
                client.send(text="".join(self._text), place=self.place, asks=True)
                answer = client.next()
            except OSError:
                answer = None
            if answer is not None:
                break
            self._drop_client()
        self._text.clear()
        if answer.get("leave") == INTERRUPT:
            raise KeyboardInterrupt
        if "leave" in answer:
            raise Leave
        return f"{answer['line']}\n"

    def close(self) -> None:
        """Tells whoever types that the rank has left the debugger."""
        if self._listener is None:
            return
        self._path.unlink(missing_ok=True)
        self._listener.close()
        self._listener = None
        if self._client is not None:
            with contextlib.suppress(OSError):  # they have gone
                self._client.send(text="".join(self._text), place="", asks=False)
            self._drop_client()
        self._text.clear()

    def open(self) -> None:
        """Lets others see that the rank is in the debugger."""
        if self._listener is None:
            self._path.unlink(missing_ok=True)  # of a rank that died
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(self._path))
            self._listener.listen()

    def _accepted(self) -> Lines:
        assert self._listener is not None
        self._client = Lines(self._listener.accept()[0])
        return self._client

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.connection.close()
            self._client = None

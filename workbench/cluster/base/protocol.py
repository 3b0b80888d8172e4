"""What the notebook's side and a rank server say to each other: typed messages, one JSON line each.

A line is ``{"v": 1, "type": "StartRanks", ...}``. Requests carry an ``id`` that their ``Reply`` repeats; events come
unasked. The same messages go between the server and its warm processes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import ClusterError

VERSION = 1


class ProtocolError(ClusterError):
    """A line that is no message of this version."""


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """One rank to start: its number, what it is bound to, its environment, and how its engine finds the controller.

    ``device`` is ``"cpu"`` or the CUDA_VISIBLE_DEVICES entry of its GPU; ``cores`` are logical CPUs (empty: all).
    ``connection`` is the text of ipyparallel's engine connection file. ``preload``: the dotted ``module:function`` that
    its warm process called ("": none; None: the one that the server called first). ``python``: the interpreter that it
    runs on ("": the server's own).
    """

    rank: int
    device: str = "cpu"
    cores: list[int] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    profile_dir: str = ""
    work_dir: str = ""
    connection: str = ""
    preload: str | None = None
    python: str = ""


@dataclass(frozen=True, kw_only=True)
class StartController:
    """Start the controller of ipyparallel; answered when its connection files are written and it listens."""

    id: int = 0
    profile_dir: str
    cluster_id: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class StartRanks:
    """Start ranks, as soon as the warm processes are ready; answered when every one has a pid."""

    id: int = 0
    ranks: list[RankSpec]


@dataclass(frozen=True, kw_only=True)
class SignalRanks:
    """Send a signal to ranks (not to their children)."""

    id: int = 0
    ranks: list[int]
    signum: int


@dataclass(frozen=True, kw_only=True)
class StopRanks:
    """End all ranks: SIGTERM, SIGKILL after ``grace_s``; answered when none is left."""

    id: int = 0
    grace_s: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """End ranks, controller, warm processes and the server itself; the connection's end is the answer."""

    id: int = 0
    grace_s: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Answer to the request ``id``; ``error`` is empty when it was done, else readable."""

    id: int
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """State of a warm process: ``warming``, ``warm`` (after ``seconds``) or ``failed`` (``detail``: why).

    ``preload`` and ``python``: of the ranks that it serves, as in ``RankSpec``."""

    device: str
    state: str
    preload: str = ""
    python: str = ""
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ControllerReady:
    """The controller listens; ``detail`` is empty, or why it never will."""

    pid: int
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ControllerExited:
    """The controller ended without being asked."""

    pid: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RankStarted:
    """A rank's process exists."""

    rank: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class RankExited:
    """A rank's process ended. ``status`` is its exit code, negative for a signal; ``tail`` its last raw output."""

    rank: int
    pid: int
    status: int
    reason: str
    tail: str = ""


@dataclass(frozen=True, kw_only=True)
class Forked:
    """From a warm process to its server: it became, or forked, this rank."""

    rank: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """From a forking warm process to its server: a child of it ended with this raw wait status."""

    pid: int
    wait_status: int


Request = StartController | StartRanks | SignalRanks | StopRanks | Shutdown
Message = Request | Reply | Warmth | ControllerReady | ControllerExited | RankStarted | RankExited
Internal = RankSpec | Warmth | Forked | Reaped

_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(RankSpec, StartController, StartRanks, SignalRanks, StopRanks, Shutdown),
        *(Reply, Warmth, ControllerReady, ControllerExited, RankStarted, RankExited, Forked, Reaped),
    )
}


def encode(message: Message | Internal) -> bytes:
    """One line, newline included."""
    return json.dumps({"v": VERSION, "type": type(message).__name__, **dataclasses.asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message of one line; ``ProtocolError`` says what is wrong with it."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"not a JSON line: {line[:80]!r}") from error
    if not isinstance(data, dict) or data.pop("v", None) != VERSION:
        raise ProtocolError(f"not a message of protocol version {VERSION}: {line[:80]!r}")
    kind = _TYPES.get(data.pop("type", ""))
    if kind is None:
        raise ProtocolError(f"unknown message type: {line[:80]!r}")
    if kind is StartRanks:
        data["ranks"] = [RankSpec(**spec) for spec in data.get("ranks", [])]
    try:
        return kind(**data)
    except TypeError as error:
        raise ProtocolError(f"fields of {kind.__name__} do not fit: {error}") from error


class LineBuffer:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Any]:
        """Whole messages of what arrived so far; the rest waits."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [decode(line) for line in lines if line]

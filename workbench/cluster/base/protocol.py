"""The protocol between a rank server, its owner and its warm processes: typed messages, one JSON object per line.

A line is ``{"v": 1, "type": "StartRanks", ...}``. The owner (the notebook's kernel) sends requests; the server answers
each with a ``Reply`` of the same ``id``, and sends events at any time. Between the server and its warm processes,
``RankSpec`` goes to the warm process; ``Warmth``, ``Forked`` and ``Reaped`` come back.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import ClusterError

VERSION = 1
#: key in the metadata of an execute request: the notebook's working directory
WORK_DIR = "work_dir"
#: key in the same metadata: False before code of ours that is not to follow the notebook
FOLLOWS = "follows"
#: key in the same metadata: the ranks that the request was sent to
RANKS = "ranks"
#: key in the same metadata: the number of the cell
CELL = "cell"
_RESTART = "; restart the kernel if dist-workbench was updated while it ran"


class ProtocolError(ClusterError):
    """A line is not a valid message of this protocol version."""


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """A rank to start.

    ``rank``: its engine id. ``device``: ``"cpu"`` or the CUDA_VISIBLE_DEVICES entry of its GPU. ``cores``: the logical
    CPUs that it is pinned to (empty: not pinned). ``environment``: variables that are added to those of the server.
    ``profile_dir``: IPython profile directory of the controller. ``work_dir``: working directory ("": unchanged).
    ``connection``: text of ipyparallel's connection file for engines. ``preload``: the ``module:function`` that its
    warm process called ("": none; None: the server's own). ``python``: its interpreter ("": that of the server).
    ``arguments``: further arguments of ipyparallel's engine.
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
    arguments: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class StartController:
    """Request: start ipyparallel's controller. The reply comes when it listens and its connection files are written.

    ``environment``: variables that are added to those of the server.
    """

    id: int = 0
    profile_dir: str
    cluster_id: str = ""
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StartRanks:
    """Request: start ranks as soon as their warm processes are warm. The reply comes when every rank has a process."""

    id: int = 0
    ranks: list[RankSpec]


@dataclass(frozen=True, kw_only=True)
class SignalRanks:
    """Request: send a signal to ranks, but not to their children.

    ``sent``: ``time.time()`` of the client, by which ranks tell for which cell an interrupt is.
    """

    id: int = 0
    ranks: list[int]
    signum: int
    sent: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CallInRanks:
    """Request: call a function in a thread of ranks, also while they run a cell. The reply comes when they were told.

    ``function``: ``module:name``. ``arguments``: keyword arguments, as JSON. Ranks that have not imported the module
    ignore it.
    """

    id: int = 0
    ranks: list[int]
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StopRanks:
    """Request: end all ranks with SIGTERM, and SIGKILL after ``grace_s`` seconds. The reply comes when none is left."""

    id: int = 0
    grace_s: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """Request: end the ranks (as ``StopRanks``), controller, warm processes and server.

    Instead of a reply, the server closes the connection.
    """

    id: int = 0
    grace_s: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The reply to the request ``id``. ``error``: "" on success, otherwise a message for the user."""

    id: int
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """Event: the state of a warm process.

    ``state``: ``warm`` (ready, after ``seconds``) or ``failed`` (``detail``: why). ``device``, ``preload`` and
    ``python``: those of the ranks that start from it, as in ``RankSpec``.
    """

    device: str
    state: str
    preload: str = ""
    python: str = ""
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ControllerReady:
    """Event: the controller listens. ``detail`` is not used."""

    pid: int
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ControllerExited:
    """Event: the controller ended unexpectedly."""

    pid: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RankStarted:
    """Event: the process of a rank exists."""

    rank: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class RankExited:
    """Event: the process of a rank ended.

    ``status``: exit code, negative for a signal. ``reason``: description for the user. ``tail``: end of its raw output.
    """

    rank: int
    pid: int
    status: int
    reason: str
    tail: str = ""


@dataclass(frozen=True, kw_only=True)
class Forked:
    """From a warm process to the server: it has forked, or is about to become, this rank."""

    rank: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """From a forking warm process to the server: a rank that it forked ended with this raw wait status."""

    pid: int
    wait_status: int


Request = StartController | StartRanks | SignalRanks | CallInRanks | StopRanks | Shutdown
Message = Request | Reply | Warmth | ControllerReady | ControllerExited | RankStarted | RankExited
WarmProcessMessage = RankSpec | Warmth | Forked | Reaped

_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(RankSpec, StartController, StartRanks, SignalRanks, CallInRanks, StopRanks, Shutdown),
        *(Reply, Warmth, ControllerReady, ControllerExited, RankStarted, RankExited, Forked, Reaped),
    )
}


def encode(message: Message | WarmProcessMessage) -> bytes:
    """Encodes a message as one line, including the newline."""
    return json.dumps({"v": VERSION, "type": type(message).__name__, **dataclasses.asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Any:
    """Decodes one line. Raises ``ProtocolError`` when it is not a valid message."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"not a line of JSON: {line[:80]!r}{_RESTART}") from error
    if not isinstance(data, dict) or data.pop("v", None) != VERSION:
        raise ProtocolError(f"not a message of protocol version {VERSION}: {line[:80]!r}{_RESTART}")
    kind = _TYPES.get(data.pop("type", ""))
    if kind is None:
        raise ProtocolError(f"unknown message type: {line[:80]!r}{_RESTART}")
    if kind is StartRanks:
        data["ranks"] = [RankSpec(**spec) for spec in data.get("ranks", [])]
    try:
        return kind(**data)
    except TypeError as error:
        raise ProtocolError(f"wrong fields for message {kind.__name__}: {error}{_RESTART}") from error


class LineBuffer:
    """Splits a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Any]:
        """Adds received bytes and returns the messages that are complete. Keeps an incomplete line for the next call.

        Raises ``ProtocolError`` for an invalid line.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [decode(line) for line in lines if line]

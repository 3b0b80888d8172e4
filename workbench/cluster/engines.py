"""The ipyparallel side of a session: a controller's connection, a client, and engines that register with it."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workbench.cluster.cells import Submission, send
from workbench.errors import CellError, format_ranks

_ASK_EVERY_S = 0.25


def connection(profile_dir: Path, kind: str, cluster_id: str = "") -> dict[str, Any]:
    """The connection file of a controller; ``kind`` is ``"client"`` or ``"engine"``."""
    name = f"ipcontroller-{cluster_id}-{kind}.json" if cluster_id else f"ipcontroller-{kind}.json"
    return json.loads((profile_dir / "security" / name).read_text())


def connect(info: dict[str, Any]) -> Any:
    """An ipyparallel client for a session: see ``_client_class``."""
    return _client_class()(info, timeout=10)


@functools.cache
def _client_class() -> Any:
    import ipyparallel

    class RankClient(ipyparallel.Client):
        """A client that leaves the shell's magics alone and never misses a reply.

        ipyparallel 9.2 reads a socket through its ZMQStream and sends on the raw socket. A send takes the wake-up of a
        reply that has just come (ZMQ's descriptor is edge-triggered), and then no reply is read ever again. Sending
        through the stream looks for such replies.
        """

        def activate(self, targets: Any = "all", suffix: str = "") -> Any:  # called at birth in an IPython shell
            return None

        def _send(self, socket: Any, *args: Any, **kwargs: Any) -> Any:
            for channel in ("mux", "task", "broadcast", "control", "query"):
                if socket is getattr(self, f"_{channel}_socket"):
                    socket = getattr(self, f"_{channel}_stream")
                    break
            return super()._send(socket, *args, **kwargs)

    return RankClient


def wait_registered(client: Any, n: int, *, timeout_s: float, check: Callable[[], None]) -> None:
    """Wait until ``n`` engines are registered. ``check`` raises when waiting is in vain; ``TimeoutError`` else.

    The client hears of registrations by subscription, and those before its subscription took effect are lost; so the
    hub is also asked now and then.
    """
    deadline = time.monotonic() + timeout_s
    ask_next = time.monotonic() + _ASK_EVERY_S
    while len(client._ids) < n:
        check()
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"{len(client._ids)} of {n} engines registered within {timeout_s:.0f} s")
        if now > ask_next:
            ask_next = now + _ASK_EVERY_S
            answer = client._send(client._query_socket, "connection_request")
            answer.add_done_callback(lambda done: client._update_engines(done.result()["content"]["engines"]))
        time.sleep(0.005)


def wait_heard(client: Any, n: int, *, timeout_s: float, check: Callable[[], None]) -> None:
    """Wait until output of each of the engines ``0 .. n - 1`` is heard; what they said before that was lost.

    ``check`` raises when waiting is in vain; ``TimeoutError`` when an engine is not heard.
    """
    deadline = time.monotonic() + timeout_s
    silent = set(range(n))
    while silent:
        probe = Submission("", sorted(silent))
        send(client, probe)
        again = time.monotonic() + _ASK_EVERY_S
        while silent and time.monotonic() < again:
            check()
            silent -= probe.heard_ranks()
            time.sleep(0.002)
        if time.monotonic() > deadline:
            raise TimeoutError(f"no output of {format_ranks(silent)} arrived within {timeout_s:.0f} s")


def value_of(answer: Any) -> Any:
    """The value of an ``AsyncResult`` that is ready; ``CellError`` with the ranks that failed."""
    from ipyparallel.error import CompositeError, RemoteError

    try:
        return answer.get()
    except CompositeError as error:
        ename, evalue, traceback, _ = error.elist[0]
        raise CellError([engine["engine_id"] for *_, engine in error.elist], ename, evalue, traceback) from None
    except RemoteError as error:
        raise CellError([error.engine_info["engine_id"]], error.ename, error.evalue, error.traceback) from None


def unregister(engine_info: dict[str, Any], ranks: Iterable[int]) -> None:
    """Tell a controller that engines are gone, so that it tells its clients now and not after missed heartbeats."""
    import zmq
    from jupyter_client.session import Session

    session = Session(
        key=engine_info["key"].encode(),
        signature_scheme=engine_info["signature_scheme"],
        packer=engine_info["pack"],
        unpacker=engine_info["unpack"],
    )
    socket: Any = zmq.Context.instance().socket(zmq.DEALER)
    with socket:
        socket.linger = 500
        socket.connect(f"{engine_info['interface']}:{engine_info['registration']}")
        for rank in ranks:
            session.send(socket, "unregistration_request", content={"id": rank})


def release(client: Any, engine_info: dict[str, Any], ranks: Iterable[int], *, timeout_s: float) -> None:
    """Unregister engines and wait until the controller says that none is left; ``TimeoutError`` else."""
    unregister(engine_info, ranks)
    deadline = time.monotonic() + timeout_s
    while client._ids:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the controller still lists {format_ranks(client._ids)}")
        time.sleep(0.005)

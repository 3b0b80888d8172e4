"""ipyparallel for a session: connection files of the controller, a client, and the registration of engines."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workbench.cluster.cells import Submission, send
from workbench.core import background
from workbench.errors import CellError, ClusterError, format_ranks

_RETRY_INTERVAL_S = 0.25
#: seconds that a controller, which listens, has to answer a client: the machine may be overloaded
_CONNECT_TIMEOUT_S = 60.0


def read_connection_file(profile_dir: Path, kind: str, cluster_id: str = "") -> dict[str, Any]:
    """Reads a connection file that the controller wrote. ``kind``: ``"client"`` or ``"engine"``."""
    name = f"ipcontroller-{cluster_id}-{kind}.json" if cluster_id else f"ipcontroller-{kind}.json"
    return json.loads((profile_dir / "security" / name).read_text())


def connect(info: dict[str, Any]) -> Any:
    """Connects to a controller. ``info``: its connection file for clients. Returns an ipyparallel client."""
    return _client_class()(info, timeout=_CONNECT_TIMEOUT_S)


@functools.cache
def _client_class() -> Any:
    import ipyparallel

    class RankClient(ipyparallel.Client):
        """A client that does not register ipyparallel's magics and does not miss replies.

        ipyparallel 9.2 reads from a ZMQStream but sends on the raw socket. ZMQ's file descriptor is edge-triggered, so
        a send on the raw socket can consume the notification of a reply that has just arrived; no reply is read after
        that. A send through the stream checks for such replies.
        """

        def activate(
            self, targets: Any = "all", suffix: str = ""
        ) -> Any:  # called by the constructor in an IPython shell
            return None

        def _send(self, socket: Any, *args: Any, **kwargs: Any) -> Any:
            for channel in ("mux", "task", "broadcast", "control", "query"):
                if socket is getattr(self, f"_{channel}_socket"):
                    socket = getattr(self, f"_{channel}_stream")
                    break
            return super()._send(socket, *args, **kwargs)

        def _handle_apply_reply(self, msg: Any) -> None:
            try:
                super()._handle_apply_reply(msg)
            except Exception as error:  # unpickling raises anything
                self._fail_request(msg, error)

        def _handle_execute_reply(self, msg: Any) -> None:
            try:
                super()._handle_execute_reply(msg)
            except Exception as error:
                self._fail_request(msg, error)

        def _dispatch_iopub(self, msg_parts: Any) -> None:
            """Handles output of a rank. An exception would end the reading of all output that follows."""
            try:
                super()._dispatch_iopub(msg_parts)
            except Exception as error:
                background.warner("the notebook cannot read a message that a rank published")(error)

        def _fail_request(self, msg: Any, error: Exception) -> None:
            """Ends the request of a reply that cannot be read, with an error; without it the request waits for ever."""
            msg_id = msg["parent_header"]["msg_id"]
            future = self._futures.get(msg_id)
            self.results[msg_id] = _unreadable(error, self._engines.get(msg["metadata"].get("engine"), -1))
            if future is not None and not future.done():
                future.set_result(self.results[msg_id])

    return RankClient


def _unreadable(error: Exception, rank: int) -> Exception:
    """Returns the error of a request whose reply the notebook cannot read, in ipyparallel's form for a failed one."""
    from ipyparallel.error import RemoteError

    text = (
        f"the notebook cannot read the reply ({error}): import or define in the notebook what its class needs, or turn "
        "the value into numbers, text or arrays on the ranks first"
    )
    return RemoteError(type(error).__name__, text, "", {"engine_id": rank, "engine_uuid": "", "method": "apply"})


def wait_until_registered(client: Any, n: int, *, timeout_s: float, check: Callable[[], None]) -> None:
    """Waits until ``n`` engines are registered with the controller.

    ``check()`` is called repeatedly and raises when an engine has died. Raises ``TimeoutError`` after ``timeout_s``.

    The client learns of registrations through a subscription and misses those made before the subscription took
    effect. The list of engines is therefore also requested every 0.25 s.
    """
    deadline = time.monotonic() + timeout_s
    next_request = time.monotonic() + _RETRY_INTERVAL_S
    while len(client._ids) < n:
        check()
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"{len(client._ids)} of {n} engines registered within {timeout_s:.0f} s")
        if now > next_request:
            next_request = now + _RETRY_INTERVAL_S
            reply = client._send(client._query_socket, "connection_request")
            reply.add_done_callback(lambda done: client._update_engines(done.result()["content"]["engines"]))
        time.sleep(0.005)


def wait_until_gone(client: Any, ranks: Iterable[int], *, timeout_s: float, check: Callable[[], None]) -> None:
    """Waits until the client knows that engines, which have ended, are no longer registered.

    ``check()`` is called repeatedly. Raises ``ClusterError`` after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while left := sorted(set(ranks) & set(client._ids)):
        check()
        if time.monotonic() > deadline:
            raise ClusterError(f"the controller still lists {format_ranks(left)}: run %dist_down, then %dist_up")
        time.sleep(0.005)


def wait_for_output(client: Any, ranks: Iterable[int], *, timeout_s: float, check: Callable[[], None]) -> None:
    """Waits until the client receives output of each of the engines ``ranks``; earlier output is lost.

    Sends empty cells until the end-of-output message of one, whichever, has arrived from every engine. ``check()`` is
    called repeatedly and raises when an engine has died. Raises ``TimeoutError`` after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    silent = set(ranks)
    probes: list[Submission] = []
    while silent:
        probes.append(Submission("", sorted(silent)))
        send(client, probes[-1])
        # on a slow machine an answer may take longer than this: no more cells than it can answer
        retry_at = time.monotonic() + _RETRY_INTERVAL_S * len(probes)
        while silent and time.monotonic() < retry_at:
            check()
            silent -= set().union(*(probe.ranks_with_complete_output() for probe in probes))
            time.sleep(0.002)
        if time.monotonic() > deadline:
            raise TimeoutError(f"no output of {format_ranks(silent)} arrived within {timeout_s:.0f} s")


def get_value(result: Any) -> Any:
    """Returns the value of a completed ``AsyncResult``. Raises ``CellError`` with the ranks that failed, without a
    traceback: there is no code of the user in a copy."""
    from ipyparallel.error import CompositeError, RemoteError

    try:
        return result.get()
    except CompositeError as error:
        ename, evalue, *_ = error.elist[0]
        raise CellError([engine["engine_id"] for *_, engine in error.elist], ename, evalue) from None
    except RemoteError as error:
        raise CellError([error.engine_info["engine_id"]], error.ename, error.evalue) from None


def unregister(engine_info: dict[str, Any], ranks: Iterable[int]) -> None:
    """Unregisters engines that have ended, so that clients learn of it now and not after missed heartbeats.

    ``engine_info``: the controller's connection file for engines.
    """
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


def unregister_and_wait(client: Any, engine_info: dict[str, Any], ranks: Iterable[int], *, timeout_s: float) -> None:
    """Unregisters engines and waits until the client sees no engine any more.

    Raises ``TimeoutError`` after ``timeout_s``.
    """
    unregister(engine_info, ranks)
    deadline = time.monotonic() + timeout_s
    while client._ids:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the controller still lists {format_ranks(client._ids)}")
        time.sleep(0.005)

"""Waiting in a cell while the buttons of widgets stay alive.

A kernel takes no message on its shell channel while a cell runs, so a click waits until the cell ends. A cell of ours
that waits uses ``wait_serving_comms``: it takes the messages itself, hands those of widgets to their handlers at once,
and everything else (the next cell, a completion) to the kernel's own queue, in order, for when the cell is over.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

#: those of widgets, and what a page asks before it shows widgets again after a reload
SERVED = frozenset({"comm_open", "comm_msg", "comm_close", "kernel_info_request", "comm_info_request"})
_DELIMITER = b"<IDS|MSG>"


def wait_serving_comms(until: Callable[[], bool], poll_s: float = 0.1) -> None:
    """Return once ``until()`` is true, looked at every ``poll_s`` seconds and after each message.

    In the main thread of a kernel (ipykernel 6.29 and 7) widgets' messages are handled meanwhile; elsewhere it only
    waits. ``KeyboardInterrupt`` passes through, with nothing lost: later cells still run in order.
    """
    kernel = _kernel()
    stream = _main_stream(kernel) if threading.current_thread() is threading.main_thread() else None
    if stream is None:
        while not until():
            time.sleep(poll_s)
        return
    import zmq

    original, copy = stream._recv_callback, stream._recv_copy  # pyzmq offers no getter for the callback it sets

    def receive(frames: list[Any]) -> Any:
        """A message of widgets now; any other to the kernel's queue (its awaitable runs when the cell has ended)."""
        if _message_type(kernel, frames) in SERVED:
            return _serve(kernel, stream, frames)
        return original(frames)

    stream.on_recv(receive, copy=False)
    try:
        while not until():
            stream.socket.poll(int(poll_s * 1000), zmq.POLLIN)
            stream.flush(zmq.POLLIN)
    finally:
        stream.on_recv(original, copy=copy)


def _kernel() -> Any:
    """The kernel that this code runs in, or None."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def _main_stream(kernel: Any) -> Any:
    """The stream on which the main thread receives shell messages; None when there is none."""
    if kernel is None:
        return None
    channel = getattr(kernel, "shell_channel_thread", None)
    if channel is None:  # ipykernel 6, or 7 without its channel thread: the socket itself
        return kernel.shell_stream
    return channel.manager.get_shell_channel_to_subshell_pair(None).to_stream


def _message_type(kernel: Any, frames: list[Any]) -> str:
    """Type in the header of a raw message; "" when it has none (ipykernel's own signals between its threads)."""
    raw = [bytes(getattr(frame, "buffer", frame)) for frame in frames]
    if _DELIMITER not in raw:
        return ""
    header = raw[raw.index(_DELIMITER) + 2]
    return str(kernel.session.unpack(header).get("msg_type", ""))


def _serve(kernel: Any, stream: Any, frames: list[Any]) -> None:
    """Check the signature, run the handler, and tell the front end when it is done; the cell stays the parent."""
    identities, rest = kernel.session.feed_identities(frames, copy=False)
    try:
        message = kernel.session.deserialize(rest, content=True, copy=False)
    except (ValueError, TypeError) as error:
        kernel.log.error("a message that cannot be read: %s", error)
        return
    _status(kernel, "busy", message)
    try:
        _run(
            kernel,
            kernel.shell_handlers[message["header"]["msg_type"]](_reply_stream(kernel, stream), identities, message),
        )
    finally:
        _status(kernel, "idle", message)
        _status(kernel, "busy", kernel.get_parent("shell"))


def _reply_stream(kernel: Any, stream: Any) -> Any:
    """Where handlers send their replies: in ipykernel 7 the way back to the thread that owns the shell socket."""
    channel = getattr(kernel, "shell_channel_thread", None)
    return stream if channel is None else channel.manager.get_subshell_to_shell_channel_socket(None)


def _run(kernel: Any, result: Any) -> None:
    """Finish a handler that is a coroutine in name only (ipykernel's info requests never wait)."""
    if not inspect.iscoroutine(result):
        return
    try:
        result.send(None)
    except StopIteration:
        return
    result.close()
    kernel.log.error("a handler waits for the event loop, which the cell holds: its message is lost")


def _status(kernel: Any, state: str, parent: Any) -> None:
    topic = f"kernel.{kernel.ident}.status".encode()
    kernel.session.send(kernel.iopub_socket, "status", {"execution_state": state}, parent=parent, ident=topic)

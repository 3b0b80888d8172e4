"""Waits in a cell while the buttons of widgets keep working.

A kernel handles no message of its shell channel while a cell runs, so a click has no effect until the cell ends. A
magic that waits therefore calls ``wait_serving_comms``, which receives the messages itself. It passes messages of
widgets to their handlers at once, and all others (the next cell, a completion) to the kernel's queue, which keeps their
order until the cell ends.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

#: types of messages that are handled at once: those of widgets, and requests of a page that is reloaded
SERVED = frozenset({"comm_open", "comm_msg", "comm_close", "kernel_info_request", "comm_info_request"})
_DELIMITER = b"<IDS|MSG>"


def wait_serving_comms(until: Callable[[], bool], poll_s: float = 0.1) -> None:
    """Return once ``until()`` is true. It is called every ``poll_s`` seconds and after each message.

    In the main thread of a kernel (ipykernel 6.29 and 7) messages of widgets are handled meanwhile; elsewhere the
    function only waits. ``KeyboardInterrupt`` propagates and loses no message: later cells still run in order.
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
        """Handle a message of widgets now; pass any other to the kernel, which handles it after the cell has ended."""
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
    """Return the kernel that this code runs in, or None."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def _main_stream(kernel: Any) -> Any:
    """Return the stream on which the main thread receives shell messages; None when there is none."""
    if kernel is None:
        return None
    channel = getattr(kernel, "shell_channel_thread", None)
    if channel is None:  # ipykernel 6, or 7 without its channel thread: the socket itself
        return kernel.shell_stream
    return channel.manager.get_shell_channel_to_subshell_pair(None).to_stream


def _message_type(kernel: Any, frames: list[Any]) -> str:
    """Return the type of a raw message; "" when it has no header (ipykernel's signals between its threads)."""
    raw = [bytes(getattr(frame, "buffer", frame)) for frame in frames]
    if _DELIMITER not in raw:
        return ""
    header = raw[raw.index(_DELIMITER) + 2]
    return str(kernel.session.unpack(header).get("msg_type", ""))


def _serve(kernel: Any, stream: Any, frames: list[Any]) -> None:
    """Check the signature, run the handler, and report busy and idle to the front end; the cell stays the parent."""
    identities, rest = kernel.session.feed_identities(frames, copy=False)
    try:
        message = kernel.session.deserialize(rest, content=True, copy=False)
    except (ValueError, TypeError) as error:
        kernel.log.error("cannot read a message: %s", error)
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
    """Return where handlers send replies: in ipykernel 7 a socket to the thread that owns the shell socket."""
    channel = getattr(kernel, "shell_channel_thread", None)
    return stream if channel is None else channel.manager.get_subshell_to_shell_channel_socket(None)


def _run(kernel: Any, result: Any) -> None:
    """Finish a handler that is a coroutine but never awaits, as ipykernel's handlers of info requests."""
    if not inspect.iscoroutine(result):
        return
    try:
        result.send(None)
    except StopIteration:
        return
    result.close()
    kernel.log.error("a handler awaits the event loop, which the running cell blocks: its message is lost")


def _status(kernel: Any, state: str, parent: Any) -> None:
    topic = f"kernel.{kernel.ident}.status".encode()
    kernel.session.send(kernel.iopub_socket, "status", {"execution_state": state}, parent=parent, ident=topic)

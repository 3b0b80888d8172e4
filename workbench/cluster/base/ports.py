"""Reserves TCP ports until the process that needs them listens on them."""

from __future__ import annotations

import socket


def reserve(address: str = "", port: int = 0) -> socket.socket:
    """Reserves a TCP port and returns a socket that is bound to it and does not listen.

    ``port``: 0 for a free port. Close the socket to release the port.

    While the socket is open, the kernel does not choose the port for a process that binds to any free port, and a
    process that binds to this port without ``SO_REUSEADDR`` gets an error. ZeroMQ and PyTorch's ``TCPStore`` set that
    option, so they can listen on the port while it is reserved. The usual alternative, to bind to a free port, close
    the socket and bind again later, lets another process take the port in between.

    Raises ``OSError`` when another process listens on ``port``, or this user may not bind to it.
    """
    reserved = socket.socket()
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((address, port))
    except OSError:
        reserved.close()
        raise
    return reserved

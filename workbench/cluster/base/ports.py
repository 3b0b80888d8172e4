"""TCP ports that stay free until the process that was promised one listens on it."""

from __future__ import annotations

import socket


def reserve(address: str = "", port: int = 0) -> socket.socket:
    """Reserve a TCP port: a socket that is bound to ``port`` of ``address`` (0: a free one) and never listens.

    While it is open, the kernel gives the port to nobody who asks for any free one, and refuses it to whoever asks for
    this one without ``SO_REUSEADDR``. ZeroMQ and PyTorch's ``TCPStore`` set that option, so they can listen on it at
    once. To find a free port, close it and bind it later leaves a gap in which another process can take it.
    ``OSError`` when somebody listens on ``port``, or this user may not.
    """
    reserved = socket.socket()
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((address, port))
    except OSError:
        reserved.close()
        raise
    return reserved

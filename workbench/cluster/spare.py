"""The spare rank server: started ahead of time, so that its warm processes are ready when a session needs them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from workbench.cluster.client import RankServer, get_preload

_spare: list[RankServer] = []  # at most one server, started ahead of time and not used by a session yet
_spare_lock = threading.Lock()


def start_spare(*, preload: str | None = None, devices: Sequence[str] | None = None) -> RankServer:
    """Starts a spare rank server for a later ``take_server`` and returns it without waiting until it is warm.

    Returns the existing spare server if there is one.
    """
    with _spare_lock:
        if not (_spare and _spare[0].alive):
            _spare[:] = [_start_server(preload, devices, "")]
        return _spare[0]


def warm_up() -> None:
    """Starts a rank server, its controller and its warm processes in the background. Returns immediately."""
    start_spare().ensure_controller()


def take_server(*, preload: str | None = None, devices: Sequence[str] | None = None, python: str = "") -> RankServer:
    """Returns a rank server for the caller alone: the spare server if it matches the arguments, else a new one.

    Ends a spare server that does not match. Raises ``ClusterError`` when no server can be started.
    """
    preload = get_preload() if preload is None else preload
    with _spare_lock:
        spares, _spare[:] = list(_spare), []
    for server in spares:
        matches = (server.preload, server.python) == (preload, python)
        if server.alive and matches and (devices is None or tuple(devices) == server.devices):
            return server
        server.close()
    return _start_server(preload, devices, python)


def close_spare() -> None:
    """Ends the spare rank server, if there is one."""
    with _spare_lock:
        spares, _spare[:] = list(_spare), []
    for server in spares:
        server.close()


def _start_server(preload: str | None, devices: Sequence[str] | None, python: str) -> RankServer:
    from workbench.cluster.hosts.machine import visible_device_ids

    return RankServer(preload=preload, devices=visible_device_ids() if devices is None else devices, python=python)

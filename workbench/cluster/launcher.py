"""ipyparallel launchers: ``ipp.Cluster(engines="workbench", n=4)`` brings warm, bound ranks up without our magics.

Each launcher owns a rank server, so that nothing outlives the process that made the cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

from ipyparallel.cluster.launcher import BaseLauncher, ControllerLauncher, EngineLauncher, NotRunning
from traitlets import Dict, Integer, Unicode, default

from workbench.cluster import client as rank_servers
from workbench.cluster.base import protocol as p
from workbench.cluster.base.rank_kind import RankKind
from workbench.cluster.engines import unregister
from workbench.cluster.hosts import machine
from workbench.cluster.hosts.specs import MASTER_ADDR, plan_ranks, rank_specs


class _ServerLauncher(BaseLauncher):
    """What both launchers share: a server, its end, and that neither can be found again from another process."""

    server: Any = None
    _stopping = False

    @classmethod
    def from_dict(cls, d: dict[str, Any], **kwargs: Any) -> Any:
        raise NotRunning("ranks of a rank server end with the process that started them")

    def find_args(self) -> list[str]:
        return ["workbench.cluster.server.rank_server"]

    def poll(self) -> int | None:
        """None while it runs."""
        return None if self.server is not None and self.server.alive else 1

    async def join(self, timeout: float | None = None) -> None:
        """Wait until it has stopped; ``TimeoutError`` after ``timeout`` seconds."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while self.state != "after":
            if deadline is not None and asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{type(self).__name__} still runs after {timeout} s")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End the server and all it owns."""
        self._stopping = True
        if self.server is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.server.close)
        if self.state != "after":
            self.notify_stop({"exit_code": 0, "identifier": self.identifier})

    def _watch_end(self) -> None:
        def ended(reason: str) -> None:
            if not self._stopping:
                data = {"exit_code": 1, "identifier": self.identifier, "reason": reason}
                self.loop.add_callback(self.notify_stop, data)

        self.server.on_end(ended)


class WorkbenchControllerLauncher(_ServerLauncher, ControllerLauncher):
    """The controller as a child of a rank server: all of it ends with the process that made the cluster."""

    async def start(self) -> None:
        """Start the controller; ``get_connection_info`` waits for it."""
        self.server = rank_servers.RankServer(preload="")
        self._watch_end()
        started = self.server.start_controller(
            Path(self.profile_dir).resolve(), self.cluster_id, [*self.cluster_args, *self.controller_args]
        )
        await asyncio.wrap_future(started)
        self.notify_start({"pid": self.server.pid})


class WorkbenchEngineSetLauncher(_ServerLauncher, EngineLauncher):
    """Warm ranks, bound to GPUs or cores, with the variables that torchrun sets."""

    preload = Unicode(
        help="Dotted 'module:function' that imports what ranks need, before they are forked. Empty: nothing. "
        "Default: that of the default framework.",
    ).tag(config=True)
    python = Unicode(help="Python interpreter that ranks run on. Empty: this one.").tag(config=True)
    master_port = Integer(0, help="MASTER_PORT of the ranks; 0: a free one.").tag(config=True)

    @default("preload")
    def _default_preload(self) -> str:
        return rank_servers.preload_of()

    exits = Dict(help="Rank -> why its process ended, for those that did.")
    _port: socket.socket | None = None  # keeps MASTER_PORT free for the ranks
    _first_rank = 0  # decided once: other sets may end while this one runs

    def _base_rank(self) -> int:
        """Engine sets after the first of a cluster count on."""
        sets = getattr(self.parent, "engines", None) or {}
        return sum(each.n for each in sets.values() if each is not self and each.state != "before")

    async def start(self, n: int) -> None:
        """Start ``n`` ranks; returns when their processes exist."""
        self.n = n
        self._first_rank = self._base_rank()
        placement = plan_ranks(n)
        for warning in placement.warnings:
            self.log.warning(warning)
        self._port = machine.reserve_master_port(MASTER_ADDR, self.master_port or None)
        self.server = rank_servers.take(preload=self.preload, python=self.python)
        self.server.on_event(self._hear)
        self._watch_end()
        specs = rank_specs(
            placement,
            RankKind(framework="", preload=self.preload, python=self.python),
            master_port=self._port.getsockname()[1],
            profile_dir=Path(self.profile_dir).resolve(),
            connection=self._connection(),
            first_rank=self._first_rank,
            extra_environment=self.get_env(),
        )
        await asyncio.wrap_future(self.server.start_ranks(specs))
        self.notify_start({"pid": self.server.pid, "n": n})

    def _connection(self) -> str:
        text = self.environment.get("IPP_CONNECTION_INFO") or os.environ.get("IPP_CONNECTION_INFO")
        return text or Path(self.connection_files["engine"]).read_text()

    async def stop(self) -> None:
        """End the ranks and their server."""
        await super().stop()
        if self._port is not None:
            self._port.close()

    def signal(self, sig: int) -> None:
        """Send a signal to every rank."""
        self.server.signal(range(self._first_rank, self._first_rank + self.n), sig).result(2.0)

    def _hear(self, message: Any) -> None:
        """In the thread that reads from the server."""
        if isinstance(message, p.RankExited) and not self._stopping:
            exits: Any = {**self.exits, message.rank: message.reason}
            self.exits = exits
            self.log.warning("rank %s ended: %s\n%s", message.rank, message.reason, message.tail)
            unregister(json.loads(self._connection()), [message.rank])
            if len(exits) == self.n:
                data = {"exit_code": 1, "identifier": self.identifier, "engines": exits}
                self.loop.add_callback(self.notify_stop, data)

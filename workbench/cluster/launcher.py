"""Launchers for ipyparallel: ``ipp.Cluster(engines="workbench", n=4)`` starts ranks without the magics.

The ranks are forked from warm processes and bound to GPUs or cores, as in a session. Each launcher owns a rank server,
so that no process outlives the one that created the cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Collection
from pathlib import Path
from textwrap import indent
from typing import Any

from ipyparallel.cluster.launcher import BaseLauncher, ControllerLauncher, EngineLauncher, NotRunning
from traitlets import Dict, Integer, Unicode, default

from workbench.cluster import client as rank_servers
from workbench.cluster.base import protocol as p
from workbench.cluster.base.rank_kind import RankKind
from workbench.cluster.engines import unregister
from workbench.cluster.hosts import machine
from workbench.cluster.hosts.specs import MASTER_ADDR, plan_ranks, rank_specs
from workbench.cluster.server.warm import rank_log_path
from workbench.cluster.spare import take_server
from workbench.errors import ConfigError

#: options of ipyparallel's programs that the launchers give themselves
_OF_CLUSTER = frozenset(("profile", "profile-dir", "cluster-id", "ProfileDir.location"))
_OF_ENGINES = frozenset((
    "file", "url", "mpi", "IPEngine.url_file", "IPEngine.registration_url", "IPEngine.use_mpi", "IPEngine.id",
    "IPEngine.enable_nanny", "IPEngine.max_heartbeat_misses",
))  # fmt: skip


class _ServerLauncher(BaseLauncher):
    """Base class of the launchers: owns a rank server and reports its end. Cannot be restored from another process."""

    server: Any = None
    _stopping = False
    _output = ""  # of processes whose server has ended, and with it their files

    def _check(self, command: str, arguments: str, *, ours: Collection[str], instead: str) -> None:
        """Raises ``ConfigError`` for what ipyparallel's launchers take and this one does not.

        ``command``, ``arguments``: names of the traits. ``ours``: options that this launcher sets itself.
        """
        if getattr(self, command) != self.traits()[command].default():
            raise ConfigError(f"{command} cannot be set for {type(self).__name__}: {instead}", field=command)
        for argument in getattr(self, arguments):
            if argument.lstrip("-").partition("=")[0] in ours:
                raise ConfigError(
                    f"{arguments}: {type(self).__name__} sets {argument.partition('=')[0]} itself: leave it out",
                    field=arguments,
                )

    def _logs(self) -> dict[str, Path]:
        """Returns the files with the output of the launcher's processes, by the name that ``get_output`` gives them."""
        return {}

    def get_output(self, remove: bool = False) -> str:
        """Returns what the processes have written, the last ``output_limit`` lines of each.

        Their files are removed with the rank server, whatever ``remove`` says.
        """
        tails = {name: self._tail(file) for name, file in self._logs().items()}
        found = [f"Output for {name}\n{indent(text, '  ')}" for name, text in tails.items() if text]
        self._output = "\n".join(found) or self._output
        return self._output

    def _tail(self, file: Path) -> str:
        if not file.is_file():  # it goes with the server
            return ""
        lines = file.read_text(errors="replace").splitlines(keepends=True)
        return "".join(lines[-self.output_limit :] if self.output_limit else lines)

    def notify_start(self, data: Any) -> Any:
        """Records the start, unless the processes have ended meanwhile."""
        return super().notify_start(data) if self.state == "before" else data

    @classmethod
    def from_dict(cls, d: dict[str, Any], **kwargs: Any) -> Any:
        raise NotRunning("the ranks have ended with the process that started them: start a new cluster")

    def find_args(self) -> list[str]:
        return ["workbench.cluster.server.rank_server"]

    def poll(self) -> int | None:
        """Returns None while the server runs, then 1."""
        return None if self.server is not None and self.server.alive else 1

    async def join(self, timeout: float | None = None) -> None:
        """Waits until the launcher has stopped. Raises ``TimeoutError`` after ``timeout`` seconds."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while self.state != "after":
            if deadline is not None and asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{type(self).__name__} did not stop within {timeout} s: call stop() to end it")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Ends the server and all processes that it owns."""
        self._stopping = True
        if self.server is not None:
            self.get_output()
            await asyncio.get_running_loop().run_in_executor(None, self.server.close)
        if self.state != "after":
            self.notify_stop({"exit_code": 0, "identifier": self.identifier})

    def _report_end(self) -> None:
        _ = self.loop  # made here: the reader thread of the server, which uses it, has another

        def notify(reason: str) -> None:
            if not self._stopping:
                data = {"exit_code": 1, "identifier": self.identifier, "reason": reason}
                self.loop.add_callback(self.notify_stop, data)

        self.server.on_end(notify)


class WorkbenchControllerLauncher(_ServerLauncher, ControllerLauncher):
    """Runs the controller as a child of a rank server, so that it ends with the process that created the cluster."""

    async def start(self) -> None:
        """Starts the controller and waits until it listens.

        Raises ``ConfigError`` for an argument that this launcher does not take, and ``ClusterError`` when the
        controller does not start.
        """
        instead = "it is forked from a rank server"
        self._check("controller_cmd", "controller_args", ours=_OF_CLUSTER, instead=instead)
        self.server = rank_servers.RankServer(preload="")
        self._report_end()
        started = self.server.start_controller(
            Path(self.profile_dir).resolve(),
            self.cluster_id,
            [*self.cluster_args, *self.controller_args],
            self.get_env(),
        )
        await asyncio.wrap_future(started)
        self.notify_start({"pid": self.server.pid})

    def _logs(self) -> dict[str, Path]:
        return {} if self.server is None else {"controller": self.server.directory / "controller.log"}


class WorkbenchEngineSetLauncher(_ServerLauncher, EngineLauncher):
    """Runs ranks that are bound to GPUs or cores and have the environment variables that torchrun sets."""

    preload = Unicode(
        help="Function 'module:function' that a warm process calls before ranks start, to import what they need. "
        "Empty: none. Default: that of the default framework.",
    ).tag(config=True)
    python = Unicode(help="Python interpreter of the ranks. Empty: the current one.").tag(config=True)
    master_port = Integer(0, help="MASTER_PORT of the ranks. 0: a free port.").tag(config=True)

    @default("preload")
    def _default_preload(self) -> str:
        return rank_servers.get_preload()

    exits = Dict(help="Reason of the end of each rank that has ended, by rank.")
    _port: socket.socket | None = None  # reserves MASTER_PORT for the ranks
    _first_rank = 0  # fixed at the start: other engine sets may end while this one runs

    def _count_earlier_ranks(self) -> int:
        """Returns the number of engines in the other engine sets of the cluster, whose ids come before this set's."""
        sets = getattr(self.parent, "engines", None) or {}
        return sum(each.n for each in sets.values() if each is not self and each.state != "before")

    async def start(self, n: int) -> None:
        """Starts ``n`` ranks and waits until their processes exist.

        Raises ``ConfigError`` when there are fewer GPUs than ranks, or for an argument that this launcher does not
        take, and ``ClusterError`` when the port is taken or the rank server fails.
        """
        instead = "set c.WorkbenchEngineSetLauncher.python to another interpreter"
        self._check("engine_cmd", "engine_args", ours=_OF_CLUSTER | _OF_ENGINES, instead=instead)
        self.n = n
        self._first_rank = self._count_earlier_ranks()
        placement = plan_ranks(n)
        for warning in placement.warnings:
            self.log.warning(warning)
        self._port = machine.reserve_master_port(MASTER_ADDR, self.master_port or None)
        self.server = take_server(preload=self.preload, python=self.python)
        self.server.on_event(self._handle_event)
        self._report_end()
        specs = rank_specs(
            placement,
            RankKind(framework="", preload=self.preload, python=self.python),
            master_port=self._port.getsockname()[1],
            profile_dir=Path(self.profile_dir).resolve(),
            connection=self._read_connection(),
            first_rank=self._first_rank,
            extra_environment=self.get_env(),
            arguments=self.engine_args,
        )
        await asyncio.wrap_future(self.server.start_ranks(specs))
        self.notify_start({"pid": self.server.pid, "n": n})

    def _logs(self) -> dict[str, Path]:
        if self.server is None:
            return {}
        ranks = range(self._first_rank, self._first_rank + self.n)
        return {f"engine {rank}": rank_log_path(self.server.directory, rank) for rank in ranks}

    def _read_connection(self) -> str:
        text = self.environment.get("IPP_CONNECTION_INFO") or os.environ.get("IPP_CONNECTION_INFO")
        return text or Path(self.connection_files["engine"]).read_text()

    async def stop(self) -> None:
        """Ends the ranks and their server."""
        await super().stop()
        if self._port is not None:
            self._port.close()

    def signal(self, sig: int) -> None:
        """Sends a signal to every rank."""
        self.server.signal(range(self._first_rank, self._first_rank + self.n), sig).result(2.0)

    def _handle_event(self, message: Any) -> None:
        """Handles an event of the rank server, in its reader thread."""
        if isinstance(message, p.RankExited) and not self._stopping:
            exits: Any = {**self.exits, message.rank: message.reason}
            self.exits = exits
            self.log.warning("rank %s ended: %s\n%s", message.rank, message.reason, message.tail)
            unregister(json.loads(self._read_connection()), [message.rank])
            if len(exits) == self.n:
                data = {"exit_code": 1, "identifier": self.identifier, "engines": exits}
                self.loop.add_callback(self.notify_stop, data)

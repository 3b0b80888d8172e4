"""ipyparallel's controller as a child of the rank server."""

from __future__ import annotations

import os
import socket

from workbench.cluster.base.ports import reserve
from workbench.cluster.base.processes import die_with_parent
from workbench.cluster.base.protocol import ControllerReady, StartController, encode

#: An engine counts as connected at the second heartbeat, so this decides how fast ranks come up.
HEARTBEAT_MS = 100
#: The rank server reports deaths at once; heartbeats only have to survive a machine that is busy for a while.
HEARTBEAT_MISSES = 600


def run_controller(request: StartController, ready: int) -> None:
    """Run the controller; one ``ControllerReady`` line goes to the descriptor ``ready`` when it listens."""
    from ipyparallel.controller.app import IPController

    me = os.getpid()
    os.register_at_fork(after_in_child=lambda: die_with_parent(me))  # its schedulers and heart monitor

    reserved: list[socket.socket] = []  # until this process ends: the threads and the process that bind them start late

    class Controller(IPController):
        def next_port(self, pool_name: str = "common") -> int:
            """A port of the configured pools, else a reserved one.

            ipyparallel 9.2 notes a port that is free and binds it later, in a thread; when another process took it in
            between, that thread alone ends, and no output of any rank (or no registration) ever arrives.
            """
            pool: list[int] = self.ports
            if self.port_index >= len(pool):
                reserved.append(reserve())
                self.set_trait("ports", [*pool, reserved[-1].getsockname()[1]])
            return super().next_port(pool_name)

        def init_signal(self) -> None:
            """Called last before the loop, when all sockets are bound."""
            super().init_signal()
            os.write(ready, encode(ControllerReady(pid=me)))
            os.close(ready)

    app = Controller.instance()
    app.initialize(
        [
            f"--profile-dir={request.profile_dir}",
            *([f"--cluster-id={request.cluster_id}"] if request.cluster_id else []),
            f"--HeartMonitor.period={HEARTBEAT_MS}",
            f"--HeartMonitor.max_heartmonitor_misses={HEARTBEAT_MISSES}",
            "--IPController.use_threads=True",
            "--log-level=ERROR",
            *request.arguments,
        ]
    )
    app.start()

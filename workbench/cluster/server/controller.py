"""Runs ipyparallel's controller in a child process of the rank server."""

from __future__ import annotations

import logging
import os
import socket

from workbench.cluster.base.ports import reserve
from workbench.cluster.base.processes import die_with_parent
from workbench.cluster.base.protocol import ControllerReady, StartController, encode

#: An engine counts as connected after its second heartbeat, so a short period makes ranks start faster.
HEARTBEAT_MS = 100
#: A day, so that neither a busy machine nor a rank that is stopped looks dead. The rank server reports the end of a
#: rank without heartbeats.
HEARTBEAT_MISSES = 864_000


def run_controller(request: StartController, ready: int) -> None:
    """Runs the controller until it is told to stop.

    ``ready``: a file descriptor that receives one ``ControllerReady`` line when the controller listens.
    """
    from ipyparallel.controller.app import IPController
    from traitlets.config import Config

    pid = os.getpid()
    os.register_at_fork(after_in_child=lambda: die_with_parent(pid))  # for its schedulers and heart monitor

    reserved: list[socket.socket] = []  # never closed: the threads and processes that bind these ports start later

    class Controller(IPController):
        def next_port(self, pool_name: str = "common") -> int:
            """Returns a port of the configured pools, or reserves a free one.

            ipyparallel 9.2 chooses a free port and binds it later, in a thread. When another process takes the port in
            between, only that thread ends, and output or registrations of ranks never arrive.
            """
            pool: list[int] = self.ports
            if self.port_index >= len(pool):
                reserved.append(reserve())
                self.set_trait("ports", [*pool, reserved[-1].getsockname()[1]])
            return super().next_port(pool_name)

        def init_signal(self) -> None:
            """Reports that the controller is ready: ipyparallel calls this after it has bound all sockets."""
            super().init_signal()
            os.write(ready, encode(ControllerReady(pid=pid)))
            os.close(ready)

    os.environ.update(request.environment)
    defaults = Config(  # arguments of the request win over them; as arguments themselves, they would be given twice
        HeartMonitor={"period": HEARTBEAT_MS, "max_heartmonitor_misses": HEARTBEAT_MISSES},
        IPController={"use_threads": True, "log_level": logging.ERROR},
    )
    app = Controller.instance(config=defaults)
    app.initialize(
        [
            f"--profile-dir={request.profile_dir}",
            *([f"--cluster-id={request.cluster_id}"] if request.cluster_id else []),
            *request.arguments,
        ]
    )
    app.start()

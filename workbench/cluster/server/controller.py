"""ipyparallel's controller as a child of the rank server."""

from __future__ import annotations

import os

from workbench.cluster.base.processes import die_with
from workbench.cluster.base.protocol import ControllerReady, StartController, encode

#: An engine counts as connected at the second heartbeat, so this decides how fast ranks come up.
HEARTBEAT_MS = 100
#: The rank server reports deaths at once; heartbeats only have to survive a machine that is busy for a while.
HEARTBEAT_MISSES = 600


def run_controller(request: StartController, ready: int) -> None:
    """Run the controller; one ``ControllerReady`` line goes to the descriptor ``ready`` when it listens."""
    from ipyparallel.controller.app import IPController

    me = os.getpid()
    os.register_at_fork(after_in_child=lambda: die_with(me))  # its schedulers and heart monitor

    class Controller(IPController):
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

"""What a warm process does to become a rank: bind itself, then run ipyparallel's engine in this very process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from workbench.cluster.base.protocol import RankSpec

#: seconds an engine waits for the controller's answer
_REGISTRATION_TIMEOUT_S = 60.0


def become_rank(spec: RankSpec, after_start: Callable[[], object] | None) -> None:
    """Run the engine of ``spec`` until it is told to stop.

    ``after_start`` is what the preload returned, if that was callable: it runs here, after the environment of the
    rank is set and before any cell (to apply its share of threads).
    """
    os.environ.update(spec.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a notebook started in the background ignores it
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    if spec.work_dir:
        os.chdir(spec.work_dir)
    if after_start is not None:
        after_start()
    os.environ["IPP_CONNECTION_INFO"] = spec.connection
    from ipyparallel.engine.app import IPEngine

    app = IPEngine.instance()
    app.initialize(
        [
            f"--profile-dir={spec.profile_dir}",
            f"--work-dir={os.getcwd()}",
            f"--IPEngine.id={spec.rank}",
            f"--IPEngine.timeout={_REGISTRATION_TIMEOUT_S}",
            "--IPEngine.enable_nanny=False",  # the rank server watches instead
            "--IPEngine.max_heartbeat_misses=0",  # its life is tied to the rank server's
            "--log-level=ERROR",
        ]
    )
    del os.environ["IPP_CONNECTION_INFO"]  # holds the key that signs messages
    app.start()
    sys.stdout.flush()

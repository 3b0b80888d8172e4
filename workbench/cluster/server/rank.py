"""Turns a process into a rank: applies its binding and environment, then runs ipyparallel's engine in it."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from workbench.cluster.base.calls import serve_calls
from workbench.cluster.base.protocol import RankSpec
from workbench.core.live import rank_row
from workbench.core.live.collective_row import DIRECTORY

#: seconds that an engine waits for the controller to accept its registration
_REGISTRATION_TIMEOUT_S = 60.0


def become_rank(spec: RankSpec, directory: Path, after_start: Callable[[], object] | None) -> None:
    """Runs this process as the rank of ``spec`` until its engine is told to stop.

    ``directory``: that of the rank server.
    ``after_start``: the function that the preload function returned, or None. It is called after the environment of the
    rank is set and before any cell, for example to set the number of threads.
    """
    os.environ.update(spec.environment)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a server started by a background job inherits an ignored SIGINT
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    if spec.work_dir:
        os.chdir(spec.work_dir)
    os.environ[DIRECTORY] = str(directory)
    if after_start is not None:
        after_start()
    faulthandler.enable(file=os.dup(2))  # a fatal signal leaves the stacks in the log, which the engine detaches from 2
    rank_row.install(directory, spec.rank)
    serve_calls(directory, spec.rank)
    os.environ["IPP_CONNECTION_INFO"] = spec.connection
    from ipyparallel.engine.app import IPEngine
    from traitlets.config import Config

    defaults = Config(  # arguments of the spec win over them; as arguments themselves, they would be given twice
        IPEngine={"timeout": _REGISTRATION_TIMEOUT_S, "log_level": logging.ERROR, "work_dir": os.getcwd()},
    )
    app = IPEngine.instance(config=defaults)
    app.initialize(
        [
            f"--profile-dir={spec.profile_dir}",
            f"--IPEngine.id={spec.rank}",
            "--IPEngine.enable_nanny=False",  # the rank server watches the process
            "--IPEngine.max_heartbeat_misses=0",  # the rank ends with the rank server
            *spec.arguments,
        ]
    )
    app.config.IPKernelApp.extensions = [
        f"workbench.cluster.server.{name}" for name in ("follow", "replies", "interruptible")
    ]
    del os.environ["IPP_CONNECTION_INFO"]  # it contains the key that signs messages
    app.start()
    sys.stdout.flush()

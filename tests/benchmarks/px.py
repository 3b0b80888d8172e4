"""Engines of ``%%dist`` and of ipyparallel's ``%%px`` side by side, in one IPython shell, for what compares the two."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator

import ipyparallel
from IPython.core.interactiveshell import InteractiveShell

from magics.cluster import ClusterMagics
from workbench.cluster.session import Session


def timed(cell: Callable[[], object]) -> float:
    """Seconds of one call; what it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.perf_counter()
        cell()
        return time.perf_counter() - started


@contextlib.contextmanager
def both(n: int) -> Iterator[Callable[[str], tuple[float, float]]]:
    """``n`` light ranks, and as many engines of ipyparallel's own local launcher, with its own controller.

    The function that is given runs a cell on both, one after the other, and returns the seconds that each took.
    """
    shell = InteractiveShell.instance()
    shell.register_magics(ClusterMagics)
    session = Session.up(n, preload="")
    cluster = ipyparallel.Cluster(n=n, log_level=40)
    client = cluster.start_and_connect_sync()
    view = client[:]
    view.block = True
    view.activate()
    try:
        yield lambda code: (
            timed(lambda: shell.run_cell_magic("dist", "", code)),
            timed(lambda: shell.run_cell_magic("px", "", code)),
        )
    finally:
        client.close()
        cluster.stop_cluster_sync()
        session.down()

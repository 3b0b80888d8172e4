"""A rank takes another share of the cores, and another world size, when ranks are added."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

from workbench.core.live import given_names


def rebind(settings: Mapping[int, tuple[Mapping[str, str], list[int]]]) -> None:
    """Applies the settings of this rank: environment variables, and the cores of all its threads (empty: all cores).

    ``settings``: rank -> (environment, cores).
    """
    from IPython.core.getipython import get_ipython

    environment, cores = settings[int(os.environ["RANK"])]
    os.environ.update(environment)
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), cores or range(os.cpu_count() or 1))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    shell = get_ipython()
    if shell is not None:
        given_names.give(shell, {"world_size": int(environment["WORLD_SIZE"])})

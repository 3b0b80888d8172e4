"""What a rank needs, imported once in a process that then forks ranks (CPU) or becomes one (GPU).

Forking is safe only while the process has a single thread and never computed with more: ``load`` sees to it. It is
called by each framework's own preload function, which names what that framework's ranks need.
"""

from __future__ import annotations

import gc
import importlib
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from workbench.errors import ClusterError, ConfigError

#: needed by the first step of a rank of any framework that trains torch modules
COMMON = (
    "workbench.engine.process_group",
    "workbench.engine.collectives.functional",
    "workbench.engine.collectives.release",
    "workbench.engine.faults.planted",
    "workbench.engine.watch.torch.gradient_statistics",
    "torch._dynamo",  # the first optimizer that is made asks for it
    "torch.utils.data.distributed",
    "workbench.engine.entry",
    "workbench.telemetry.alerts.engine",
    "pyarrow.compute",  # rank 0 reads the logs of all ranks
)


def load(
    modules: Sequence[str],
    *,
    title: str,
    importing: Callable[[], AbstractContextManager[None]] = nullcontext,
    recipes: bool = False,
) -> Callable[[], None]:
    """Import torch (one thread), ``modules`` inside ``importing``, and what every rank needs. Starts no thread.

    ``recipes``: also make the data of the recipes that ranks can share. Returns what a rank calls first, when it has
    its own environment: it then computes with its share of the cores. (Torch also makes its pool of threads anew there,
    after a fork; two threads that first did so at once would abort the process, "Invalid thread pool!" in
    ParallelOpenMP.cpp.) Raises ``ClusterError`` when importing ``title`` started a thread: its owner would not exist in
    a forked rank.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Libraries ask at import whether there is a GPU; NVML answers without touching CUDA, so that ranks forked from here
    # could still use one.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not survive the fork
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # so would pyarrow's
    before = _threads()
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with importing():
            for name in (*modules, *COMMON):
                importlib.import_module(name)
        if recipes:
            _warm_recipes()
        _render_a_traceback()
        importlib.import_module("workbench.engine.watch.torch.peak_flops").measure_cpu_peak_per_thread()
    started = _threads() - before
    if started > 0:
        raise ClusterError(f"importing {title} started {started} thread(s): ranks forked from here could hang")
    gc.collect()
    gc.freeze()  # a rank's collector then never walks, and so never copies, what it shares with this process
    return _begin_rank


def _begin_rank() -> None:
    """What a rank does first: it computes with its share of the cores, and records its collectives."""
    import torch

    from workbench.core.live.collective_row import DIRECTORY
    from workbench.core.live.rank_row import tellers
    from workbench.engine.collectives import flight, functional, record

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if os.environ.get(DIRECTORY):
        record.install(os.environ[DIRECTORY])
        functional.wrap()
        tellers[:] = [flight.recorded]


def _render_a_traceback() -> None:
    """Load what IPython renders tracebacks with: the first one of a rank then takes no second."""
    from IPython.core.ultratb import VerboseTB

    try:
        raise ValueError
    except ValueError as error:
        VerboseTB(include_vars=False).structured_traceback(type(error), error, error.__traceback__)


def _warm_recipes() -> None:
    """Data that ranks can share. One that cannot be had is the concern of whoever trains it."""
    from workbench.core.recipe import recipes

    for recipe in recipes().values():
        try:
            recipe.warm()
        except ConfigError as error:
            warnings.warn(f"recipe {recipe.name}: {error}", stacklevel=2)


def _threads() -> int:
    """Threads of this process, those of native libraries included where the system tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()

"""A process as a rank of MPI, and what such ranks import."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.core.live.collective_row import DIRECTORY
from workbench.engine import preload
from workbench.engine.frameworks.torch import ranks

MODULES = ("workbench.engine.frameworks.mpi.strategy",)


def load() -> Callable[[], None]:
    """As ``workbench.engine.preload.load``. A rank of a session begins with MPI when it starts, so that cells find
    ``MPI.COMM_WORLD``."""
    choose_settings()
    begin = preload.load(MODULES, title="mpi4py")

    def begin_with_mpi() -> None:
        begin()
        if os.environ.get(DIRECTORY):
            _form(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ[DIRECTORY])

    return begin_with_mpi


def choose_settings() -> None:
    """Called before MPI is loaded: a process that forks ranks must not begin with MPI, and one that ends must not wait
    for the others, which ``MPI_Finalize`` does."""
    import mpi4py

    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    os.environ.setdefault("UCX_ERROR_SIGNALS", "")  # Python tells where a rank was


def _form(rank: int, ranks: int, directory: str | Path) -> None:
    choose_settings()
    from workbench.engine.frameworks.mpi import world

    world.form(rank, ranks, directory, f"mpi-{os.environ.get('MASTER_PORT', '0')}")


@contextmanager
def joined(
    rank: int,
    world_size: int,
    rendezvous_dir: str | Path,
    *,
    seed: int = 1024,
    device_type: str | None = None,
    **meeting: Any,
) -> Iterator[torch.device]:
    """As ``workbench.engine.base.joined.Joined``; ``meeting`` are the other arguments of ``process_group.joined``.

    Ranks are in a group of torch beside MPI: what the loop tells between ranks, such as commands and the figures of a
    validation, goes over gloo.
    """
    _form(rank, world_size, rendezvous_dir)
    with ranks.joined(rank, world_size, rendezvous_dir, seed=seed, device_type=device_type, **meeting) as device:
        yield device

"""How a framework makes a process one rank of a training, and lets go of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class Joined(Protocol):
    """While the context is entered, the process is a rank and the framework is set up; it gives the rank's device.

    ``rendezvous_dir`` is a directory that all ranks see; each group of ranks in it has its own ``token``. All random
    seeds become ``seed``. ``device_type`` is "cpu" or "cuda"; None: "cuda" where there is one. Leaving, also by an
    error, undoes everything and never waits for other ranks. Raises ``ClusterError`` when the others do not come.
    """

    def __call__(
        self,
        rank: int,
        world_size: int,
        rendezvous_dir: str | Path,
        *,
        seed: int = ...,
        device_type: str | None = ...,
        token: str = ...,
        **meeting: Any,
    ) -> AbstractContextManager[Any]:
        """Join the other ranks."""

"""Which part a Python process has in a watched command: it is decided before the script runs, from its environment."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: the run directory that the command is recorded in
WATCH = "WORKBENCH_WATCH"
#: the process that the command began as
WATCH_PID = "WORKBENCH_WATCH_PID"
#: the process that is this rank: processes that it starts inherit ``RANK`` and are none
WATCH_RANK = "WORKBENCH_WATCH_RANK"
#: programs and modules that start ranks, and are none
LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
_LAUNCHER_MODULES = ("torch.distributed.", "accelerate.commands", "deepspeed.launcher")


@dataclass(frozen=True, kw_only=True)
class Role:
    """``place``: the run directory in which this process is recorded from its start; None: from its first step on, if
    it has one. ``name``: of the run. ``rank`` of ``ranks``."""

    name: str
    place: Path | None = None
    rank: int = 0
    ranks: int = 1


def role_of(environment: Mapping[str, str], pid: int, command: Sequence[str]) -> Role:
    """The role of the process ``pid``, which Python started with ``command`` (``sys.orig_argv``)."""
    place = Path(environment[WATCH])
    name = environment.get(f"{WATCH}_NAME") or place.name
    ranks, rank = int(environment.get("WORLD_SIZE") or 1), int(environment.get("RANK") or 0)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        is_one_host = environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]) == environment["WORLD_SIZE"]
        is_first_time = environment.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        is_child = WATCH_RANK in environment
        if is_one_host and is_first_time and not is_child:
            return Role(name=name, place=place, rank=rank, ranks=ranks)
        return Role(name=name)
    is_command = environment.get(WATCH_PID) == str(pid)
    return Role(name=name, place=place if is_command and not is_launcher(command) else None)


def is_launcher(command: Sequence[str]) -> bool:
    """Whether a command line of Python is that of a program that starts ranks."""
    for before, word in itertools.pairwise(command):
        if before == "-m":
            return word.startswith(_LAUNCHER_MODULES)
        if not word.startswith("-"):
            return os.path.basename(word) in LAUNCHERS
    return False

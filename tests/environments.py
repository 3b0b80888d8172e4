"""Environments of frameworks that the project's own does not have, made once for all tests of a clone."""

from __future__ import annotations

import fcntl
import functools
import os
import sys
from pathlib import Path

from tests.optional import cannot
from workbench.cli.machine import environments
from workbench.core.environments import VARIABLE, directory, is_here, python_for
from workbench.core.frameworks import framework
from workbench.errors import WorkbenchError

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def interpreter(name: str) -> str:
    """The Python that ranks of framework ``name`` run on: this one, or that of an environment, which is made first.

    Skips where it cannot be made; with ``CI`` set that is a failure.
    """
    os.environ.setdefault(VARIABLE, str(ROOT / ".environments"))
    if is_here(framework(name)):
        return sys.executable
    directory().mkdir(parents=True, exist_ok=True)
    with (directory() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may make it at this moment
        try:
            environments.create(name, print)
        except WorkbenchError as error:
            cannot(f"no environment of {name}: {error}")
    return python_for(framework(name))

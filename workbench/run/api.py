"""The Python interface to runs: ``train`` starts one, ``Run`` opens one.

Importing this module registers ``train`` as the launcher of branches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.run import branching
from workbench.run.detached import attach
from workbench.run.launch import train
from workbench.run.run import Run
from workbench.rundir.directory import runs_with_spec
from workbench.rundir.state import ended

__all__ = ["Run", "attach", "newest_live", "train"]


def newest_live() -> Run | None:
    """The newest run that has not ended; None when all have."""
    for path in reversed(runs_with_spec()):
        run = Run(path)
        if not ended(run.status):
            return run
    return None


def _launch(options: dict[str, Any]) -> Path:
    return train(options).path


branching.set_launcher(_launch)

"""A Jupyter workbench for distributed training.

``%load_ext workbench`` registers the ``%dist_`` magics and starts a rank server with warm processes in the background;
``c.Workbench.warm = False`` in IPython's configuration turns that off. The names below are the Python twins of the
magics. Nothing here imports torch; the ranks do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from workbench.cluster.session import Session
    from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec
    from workbench.core.plans.capability_table import capability_table
    from workbench.diagnosis.diagnosis import Diagnosis
    from workbench.engine.observed.callback import WorkbenchCallback
    from workbench.engine.observed.observe import observe
    from workbench.history.compare import compare
    from workbench.history.index import runs
    from workbench.run.api import Run, attach, train
    from workbench.run.debug import debug
    from workbench.run.inside_comparison import compare_inside
    from workbench.run.lab.lab import lab
    from workbench.run.planning.plans import plans
    from workbench.run.verify import verify
    from workbench.run.why import why
    from workbench.tokens.dataset import TokenDataset
    from workbench.tokens.mixture import TokenMixture
    from workbench.verification.result import Verification

__all__ = [
    "Diagnosis",
    "MonitorSpec",
    "ParallelPlan",
    "Run",
    "Session",
    "TokenDataset",
    "TokenMixture",
    "TrainSpec",
    "Verification",
    "WorkbenchCallback",
    "attach",
    "capability_table",
    "compare",
    "compare_inside",
    "debug",
    "lab",
    "observe",
    "plans",
    "runs",
    "train",
    "verify",
    "why",
]

_HOMES = {
    "Diagnosis": "workbench.diagnosis.diagnosis",
    "MonitorSpec": "workbench.core.config",
    "ParallelPlan": "workbench.core.config",
    "Run": "workbench.run.api",
    "Session": "workbench.cluster.session",
    "TokenDataset": "workbench.tokens.dataset",
    "TokenMixture": "workbench.tokens.mixture",
    "TrainSpec": "workbench.core.config",
    "WorkbenchCallback": "workbench.engine.observed.callback",
    "attach": "workbench.run.api",
    "capability_table": "workbench.core.plans.capability_table",
    "compare": "workbench.history.compare",
    "compare_inside": "workbench.run.inside_comparison",
    "debug": "workbench.run.debug",
    "lab": "workbench.run.lab.lab",
    "observe": "workbench.engine.observed.observe",
    "plans": "workbench.run.planning.plans",
    "runs": "workbench.history.index",
    "train": "workbench.run.api",
    "Verification": "workbench.verification.result",
    "verify": "workbench.run.verify",
    "why": "workbench.run.why",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext workbench``."""
    from magics import load

    load(shell)

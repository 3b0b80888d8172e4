"""``Run`` and ``train``, wired together: a run can be branched wherever ``Run`` comes from here."""

from __future__ import annotations

from workbench.run import branching
from workbench.run.launch import train
from workbench.run.run import Run, newest_live

__all__ = ["Run", "newest_live", "train"]

branching.register(train)

"""Figures: one module per figure, shown alike by the live panel and the report.

``ALL`` lists their module names in the order of the panel; ``plots()`` imports them (Bokeh costs half a second, so
nothing here imports it before it is needed). To add a figure, write one module as ``base`` says and name it in ``ALL``.
"""

from __future__ import annotations

import importlib
from typing import cast

from workbench.plots.base import Plot

ALL = (
    "loss",
    "throughput",
    "learning_rate",
    "grad_norm",
    "utilisation",
    "memory",
    "busy",
    "phase_bars",
    "lag",
    "gradients",
    "cosine",
    "noise",
    "histogram",
    "update_ratio",
    "traffic",
    "exposed",
    "bandwidth",
    "timeline",
    "validation",
    "confusion",
)


def plots() -> list[Plot]:
    """The figure modules, in the order of the panel."""
    return [cast(Plot, importlib.import_module(f"{__name__}.{name}")) for name in ALL]

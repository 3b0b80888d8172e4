"""Figures: one module per figure, used by both the live panel and the report.

``ALL`` lists the module names in the order of the panel. Importing Bokeh takes half a second, so figure modules import
it only when they draw. To add a figure, write a module that fulfils ``base.Plot`` and add its name to ``ALL``.
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
    "logged",
    "logged_second",
    "logged_third",
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
    "activations",
    "activation_gradients",
    "attention",
    "routers",
    "stable_rank",
    "traffic",
    "exposed",
    "bandwidth",
    "timeline",
    "validation",
    "metrics",
    "confusion",
)


def plots() -> list[Plot]:
    """Import and return the figure modules, in the order of the panel."""
    return [cast(Plot, importlib.import_module(f"{__name__}.{name}")) for name in ALL]

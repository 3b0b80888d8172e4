"""Loss spikes and jumps of the gradient norm: found in the metrics of a run when they are read. Pure functions.

A step's global loss is known to no rank alone, so nothing is decided while training: ``find`` reads what
``telemetry.derive.global_metrics`` gives, and everybody who reads the run finds the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from workbench.telemetry.columns import Columns

#: steps before a step that say what is usual
WINDOW = 50
#: steps that have to be there before anything is unusual
LEAST = 10
#: how many robust standard deviations above the median a spike is
THRESHOLD = 8.0
#: a spike is also at least so much of the median above it: a smooth curve has hardly any deviation
LEAST_SHARE = {"loss": 0.1, "grad_norm": 1.0}
#: the median absolute deviation of normal noise is its standard deviation times 0.6745 (Rousseeuw & Croux 1993)
_MAD_OF_NORMAL = 0.6744897501960817


@dataclass(frozen=True, slots=True)
class Spike:
    """``value`` of ``name`` ("loss" or "grad_norm") at ``step``, where ``usual`` (a median) was to be expected.

    ``score``: how many robust standard deviations lie between. ``time``: seconds since the epoch.
    """

    step: int
    time: float
    name: str
    value: float
    usual: float
    score: float


def find(metrics: Columns, *, window: int = WINDOW, threshold: float = THRESHOLD) -> list[Spike]:
    """Spikes of ``loss`` and ``grad_norm`` in global metrics (columns step, time, loss, grad_norm), by step.

    A step is compared with the ``window`` finite values before it: median and median absolute deviation, which up to
    half of the values can't spoil (Hampel 1974). Only upwards. Of consecutive steps above the threshold the first is
    the spike. Values that are not finite are no spikes: they are events of their own.
    """
    found: list[Spike] = []
    for name, share in LEAST_SHARE.items():
        values = np.asarray(metrics[name], dtype=float)
        usual, deviation = _usual(values, window)
        scale = np.maximum(deviation / _MAD_OF_NORMAL, np.abs(usual) * share / threshold)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = (values - usual) / scale
        above = np.isfinite(values) & (scale > 0) & (score > threshold)
        first = above & ~np.concatenate(([False], above[:-1]))
        for index in np.flatnonzero(first):
            when = float(metrics["time"][index]) if "time" in metrics else math.nan
            step = int(metrics["step"][index])
            found.append(Spike(step, when, name, float(values[index]), float(usual[index]), float(score[index])))
    return sorted(found, key=lambda spike: (spike.step, spike.name))


def _usual(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Median and median absolute deviation of the finite values among the ``window`` before each; NaN for too few."""
    padded = np.concatenate((np.full(window, np.nan), np.where(np.isfinite(values), values, np.nan)))[:-1]
    median, deviation = np.full(values.size, np.nan), np.full(values.size, np.nan)
    if not values.size:
        return median, deviation
    before = np.lib.stride_tricks.sliding_window_view(padded, window)
    for first in range(0, values.size, 4096):  # the copies of a long run stay small
        part = before[first : first + 4096]
        count = np.isfinite(part).sum(axis=1)
        # NumPy's median that passes over NaN is ten times slower, and hardly ever needed
        for chosen, of in ((count == window, np.median), ((count >= LEAST) & (count < window), np.nanmedian)):
            rows = first + np.flatnonzero(chosen)
            if rows.size:
                median[rows] = of(part[chosen], axis=1)
                deviation[rows] = of(np.abs(part[chosen] - median[rows, None]), axis=1)
    return median, deviation

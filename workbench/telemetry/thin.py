"""Thinning for display: fewer points that draw the same picture. Pure; nothing on disk is ever thinned."""

from __future__ import annotations

import numpy as np


def minmax_indices(x: np.ndarray, y: np.ndarray, pixels: int) -> np.ndarray:
    """Indices, ascending, of at most ``3 * pixels + 2`` points that keep a line (after M4, Jugel et al. 2014).

    The range of ``x`` (ascending, finite) is cut into ``pixels`` equal columns. Of each the lowest and the highest
    finite ``y`` stay, and one point that is not finite where there is any, so that a gap remains one. The first and the
    last point always stay. Few points stay as they are. Raises ``ValueError`` for ``pixels`` below 1.
    """
    if pixels < 1:
        raise ValueError(f"pixels must be at least 1, not {pixels}")
    size = len(x)
    if size <= 2 * pixels + 2:
        return np.arange(size)
    first, last = float(x[0]), float(x[-1])
    column = (np.asarray(x, dtype=float) - first) * (pixels / (last - first)) if last > first else np.zeros(size)
    column = np.minimum(column.astype(np.int64), pixels - 1)
    finite = np.isfinite(y)
    kept = np.zeros(size, dtype=bool)
    kept[[0, -1]] = True
    kept[_extremes(column, y, finite)] = True
    gaps = np.flatnonzero(~finite)
    kept[gaps[np.unique(column[gaps], return_index=True)[1]]] = True
    return np.flatnonzero(kept)


def _extremes(column: np.ndarray, y: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """The index of the lowest and of the highest finite value in each run of equal ``column``."""
    points = np.flatnonzero(finite)
    if not points.size:
        return points
    column, values = column[points], np.asarray(y)[points]
    starts = np.flatnonzero(np.concatenate(([True], column[1:] != column[:-1])))
    lengths = np.diff(np.append(starts, points.size))
    found = []
    for extreme in (np.minimum, np.maximum):
        of_run = np.repeat(extreme.reduceat(values, starts), lengths)
        hits = np.flatnonzero(values == of_run)
        found.append(points[hits[np.unique(column[hits], return_index=True)[1]]])
    return np.concatenate(found)


def groups_to_keep(group: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """Which rows to keep so that about half of the groups remain: a mask.

    Rows of one ``group`` (a step, a moment) stay or go together. Of each run of ``4 * len(values)`` consecutive groups
    those stay that hold the lowest and the highest of each of ``values`` (NaN passed over); without values every second
    group stays.
    """
    numbers, index = np.unique(group, return_inverse=True)
    if not values:
        return (np.arange(numbers.size) % 2 == 0)[index]
    bucket = np.arange(numbers.size) // (4 * len(values))
    chosen = np.zeros(numbers.size, dtype=bool)
    for each in values:
        of_value = np.asarray(each, dtype=float)
        low, high = np.full(numbers.size, np.inf), np.full(numbers.size, -np.inf)
        np.fmin.at(low, index, of_value)
        np.fmax.at(high, index, of_value)
        chosen[_extremes(bucket, low, np.ones(low.size, dtype=bool))[: bucket[-1] + 1]] = True
        chosen[_extremes(bucket, high, np.ones(high.size, dtype=bool))[bucket[-1] + 1 :]] = True
    return chosen[index]

"""Stable ranks of weights, from what ranks logged of their singular values. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns

if TYPE_CHECKING:
    import pandas as pd


def combine_spectra(rows: Columns) -> pd.DataFrame:
    """Rows of the ``spectra`` table -> one row per step and weight.

    Columns: step, layer (as in ``records.SpectralStats``), sigma_max (the largest singular value, from below),
    stable_rank (squared Frobenius norm over squared sigma_max, between 1 and the rank; NaN for a weight of zeros),
    norm (Frobenius).
    """
    import pandas as pd

    raw = pd.DataFrame({name: rows[name] for name in ("step", "rank", "layer", "weight_sq", "sigma_max")})
    once = raw.sort_values(["step", "layer", "rank"], kind="stable").drop_duplicates(["step", "layer"])
    sigma = once["sigma_max"].to_numpy(dtype=float)
    square = np.where(sigma > 0, sigma**2, np.nan)
    weight_sq = once["weight_sq"].to_numpy(dtype=float)
    whole = once.assign(stable_rank=weight_sq / square, norm=np.sqrt(weight_sq))
    return whole[["step", "layer", "sigma_max", "stable_rank", "norm"]].reset_index(drop=True)

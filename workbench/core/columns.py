"""Columns: a table's rows as one NumPy array per column, all of one length."""

from __future__ import annotations

import numpy as np

#: column name -> values, one per row; texts and lists have dtype object
Columns = dict[str, np.ndarray]

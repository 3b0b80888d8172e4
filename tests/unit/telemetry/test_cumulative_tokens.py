"""Tokens that were consumed so far: one rule for the panel, comparisons and exports."""

import numpy as np

from workbench.telemetry.derive import cumulative_tokens

METRICS = {"tps": np.array([100.0, np.nan, 50.0, np.inf]), "step_time_ms": np.array([500.0, 100.0, 1000.0, 0.0])}


def test_all_replicas_count_and_unknown_speeds_do_not() -> None:
    assert cumulative_tokens(METRICS, 2).tolist() == [100.0, 100.0, 200.0, 200.0]


def test_going_on_equals_counting_at_once() -> None:
    first = {name: values[:2] for name, values in METRICS.items()}
    rest = {name: values[2:] for name, values in METRICS.items()}
    before = float(cumulative_tokens(first, 2)[-1])
    assert cumulative_tokens(rest, 2, before=before).tolist() == cumulative_tokens(METRICS, 2)[2:].tolist()

"""What tests of several rooms share."""

from __future__ import annotations

import pytest

from workbench import plots


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduces reports to six figures, for tests of other parts of a report. Drawing all figures is slow."""
    shown = ("loss", "throughput", "grad_norm", "utilisation", "gradients", "timeline")
    monkeypatch.setattr(plots, "ALL", shown)

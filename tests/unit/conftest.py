<<<<<<< HEAD:tests/unit/conftest.py
"""What tests of several rooms share."""
=======
"""Fixtures for tests of reports."""
>>>>>>> 4eb7c5eb7d8d170902c826091ff496b2ce24bbed:tests/unit/report/conftest.py

from __future__ import annotations

import pytest

from workbench import plots


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce reports to six figures, for tests of other parts of a report. Drawing all figures is slow."""
    shown = ("loss", "throughput", "grad_norm", "utilisation", "gradients", "timeline")
    monkeypatch.setattr(plots, "ALL", shown)

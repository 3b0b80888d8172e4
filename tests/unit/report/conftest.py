"""What tests of reports share."""

from __future__ import annotations

import pytest


@pytest.fixture
def two_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduces reports to two figures, for tests of other parts of a report. ``test_render`` looks at all figures."""
    from workbench import plots

    monkeypatch.setattr(plots, "ALL", ("loss", "throughput"))

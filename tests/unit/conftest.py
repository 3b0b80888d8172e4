"""What tests of several rooms share."""

from __future__ import annotations

import pytest

from workbench import plots


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with six of the figures, for tests about what stands around them: all of them take most of the time."""
    shown = ("loss", "throughput", "grad_norm", "utilisation", "gradients", "timeline")
    monkeypatch.setattr(plots, "ALL", shown)

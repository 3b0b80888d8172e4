"""What the tests of this directory share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rich_run import make_rich_run


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with every table in it."""
    return make_rich_run(tmp_path_factory.mktemp("home") / "2026-05-01-120000-rich")

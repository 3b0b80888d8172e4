"""Ranks and a place for run directories, for all tests of cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.rank_pool import RankPool


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # no repository, whose state each run would record


@pytest.fixture(scope="package")
def pool() -> Iterator[RankPool]:
    with RankPool() as started:
        yield started

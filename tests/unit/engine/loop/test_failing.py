"""A training that fails: what others see of its rank, from the first moment on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workbench.core.live import rank_row
from workbench.engine.loop.trainer import Trainer


def test_a_rank_is_seen_to_fail_before_it_waits_for_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' part of a checkpoint is waited for; who ends ranks that do not end gives it that time."""
    monkeypatch.setattr(rank_row, "_own", [rank_row.RowWriter(tmp_path, 0)])
    seen: list[str] = []

    def fails() -> str:
        raise ZeroDivisionError

    trainer: Any = object.__new__(Trainer)
    trainer._train = fails
    trainer._saving = SimpleNamespace(close=lambda: seen.append(rank_row.read_row(tmp_path, 0).phase))
    trainer._snapshots = SimpleNamespace(close=lambda: None)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert seen == [rank_row.FAILING]

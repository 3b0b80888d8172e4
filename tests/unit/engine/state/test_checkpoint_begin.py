"""A checkpoint that is begun and not written leaves nothing in the run directory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from workbench.engine.state.checkpoint import Checkpoints


def test_a_rank_that_dies_before_it_is_written_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def all_can(here: bool) -> bool:
        seen.append([path.suffix for path in (tmp_path / "checkpoints").iterdir()])
        if len(seen) == 2:
            raise RuntimeError("Connection closed by peer")
        return here

    monkeypatch.setattr(Checkpoints, "_copied", lambda self, temporary, base: (None, {}, [], {}))
    parts = [SimpleNamespace(rank=0), SimpleNamespace(all_can=all_can), None]
    with pytest.raises(RuntimeError, match="closed by peer"):
        Checkpoints(tmp_path, *cast(list[Any], parts)).begin(6, {}, asked=False)
    assert seen == [[".tmp"], [".tmp"]] and not list((tmp_path / "checkpoints").iterdir())

"""Looking at ranks of a machine on which nobody gets a core for a while."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.diagnosis import stacks, view


def test_an_answer_that_comes_late_by_the_clock_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, looks = itertools.count(10, 10), itertools.count(1)

    def sleep(_: float) -> None:
        if next(looks) == 5:
            (tmp_path / "0").write_text("an answer")

    for module in (view, stacks):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds), sleep=sleep))
    assert view._answers({0: tmp_path / "0", 1: tmp_path / "1"}, 0.0) == {0: "an answer", 1: None}
    assert next(looks) == view._ANSWER_LOOKS + 1, "a rank that writes none is not waited for any longer"

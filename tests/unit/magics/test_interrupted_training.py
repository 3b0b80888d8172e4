"""Ctrl-C while ``%dist_train --wait`` waits."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from magics import train
from workbench.cluster.session import Session


def test_a_second_ctrl_c_while_the_first_is_carried_out_interrupts_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    waits = iter([True, False])

    def until_ended(run: Any, *, lines: bool) -> None:
        if next(waits):
            signal.raise_signal(signal.SIGINT)
        asked.append("waited")

    def stop() -> None:
        signal.raise_signal(signal.SIGINT)
        asked.append("stopped")

    monkeypatch.setattr(train, "_until_ended", until_ended)
    session = SimpleNamespace(interrupt_job=lambda: asked.append("interrupted"))
    monkeypatch.setattr(Session, "current", lambda: session)
    train._wait(SimpleNamespace(stop=stop, raise_if_failed=lambda: None), None, lines=False)  # type: ignore[arg-type]
    assert asked == ["stopped", "interrupted", "waited"]

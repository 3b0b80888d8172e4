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
    run = SimpleNamespace(stop=stop, raise_if_failed=lambda: None)
    train._wait(run, shown=False, lines=False)  # type: ignore[arg-type]
    assert asked == ["stopped", "interrupted", "waited"]


def test_ctrl_c_while_the_panel_is_being_shown_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def shown(run: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "_shown_panel", shown)
    monkeypatch.setattr(train, "_until_ended", lambda run, *, lines: asked.append("waited"))
    run = SimpleNamespace(stop=lambda: asked.append("stopped"), raise_if_failed=lambda: None)
    train._wait(run, shown=True, lines=False)  # type: ignore[arg-type]
    assert asked == ["stopped", "waited"]

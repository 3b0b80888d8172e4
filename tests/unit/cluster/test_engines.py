"""Waiting for engines, without any."""

from __future__ import annotations

import pytest

from tests.waiting import WAIT_S
from workbench.cluster import engines
from workbench.cluster.cells import Submission


def test_output_that_arrives_late_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine the output of a cell may arrive when the next one has been sent."""
    sent: list[Submission] = []

    def send(client: object, probe: Submission) -> None:
        if sent:
            sent[-1].mark_output_complete(0)
        if len(sent) == 3:
            sent[0].mark_output_complete(1)
        sent.append(probe)

    monkeypatch.setattr(engines, "_RETRY_INTERVAL_S", 0.01)
    monkeypatch.setattr(engines, "send", send)
    engines.wait_for_output(None, [0, 1], timeout_s=WAIT_S, check=lambda: None)
    assert [probe.ranks for probe in sent] == [(0, 1), (0, 1), (1,), (1,)]

"""The badge that counts the alerts that are on, in a bare page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser.static_page import StaticPanel
from tests.fake_run import make_fake_run
from workbench.core.records import SESSION_RANK
from workbench.events.alerts import Alert
from workbench.rundir.log import RankLogWriter

pytestmark = pytest.mark.browser

BADGE = "document.querySelector('.dw-alerts')"


def shown(count: int) -> str:
    words = f"{count} {'alert' if count == 1 else 'alerts'}"
    return f"() => !{BADGE}.hidden && {BADGE}.textContent === '{words}'" if count else f"() => {BADGE}.hidden"


def test_the_badge_counts_alerts_that_are_on_and_leads_to_the_events(bare: Any, tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=20, state="running")  # two alerts begin at step 9, one of them ends
    panel = StaticPanel(bare, run)
    panel.pump(shown(1))
    with RankLogWriter(run, SESSION_RANK) as log:
        for name, text in (("low", "loss < 1"), ("high", "<b>lr</b> > 1")):
            log.append(Alert(time=time.time(), step=20, name=name, state="begins", text=text, is_own=True).to_event())
        log.flush()
        panel.pump(shown(3))
        badge = bare.locator(".dw-alerts")
        assert badge.get_attribute("title").count("\n") == 2 and "step 20" in badge.get_attribute("title")
        assert badge.get_attribute("aria-label").startswith("3 alerts: step 9: ")
        assert bare.locator(".dw-alerts b").count() == 0, "the user's words are text"
        panel.open("ranks")
        badge.focus()
        bare.keyboard.press("Enter")
        panel.pump("() => document.querySelector(\"[role=tab][id$='-overview']\").ariaSelected === 'true'")
        assert "low" in bare.evaluate("document.activeElement.innerText")
        for name, step in (("low", 20), ("high", 20), ("rank_gradient_differs", 9)):
            log.append(Alert(time=time.time(), step=21, name=name, state="ends", since=step).to_event())
        log.flush()
        panel.pump(shown(0))
    assert not panel.errors
    panel.close()

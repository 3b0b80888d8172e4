"""What is left of a rank's log when the rank is killed, or its disk is full."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from workbench.engine.rank_output import Tee, telling
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store


def test_steps_reach_the_disk_while_a_rank_trains_and_outlive_its_kill(pool: Any, tmp_path: Path) -> None:
    pool.run(1, "tests.engine.faulty:killed", lost=(0,), run=str(tmp_path), step=20)
    word = json.loads((tmp_path / "word.json").read_text())
    store = Store(tmp_path)
    store.refresh()
    steps = store.table("steps")
    assert steps["step"].tolist() == list(range(1, len(steps["step"]) + 1))
    assert word["on_disk"] <= steps["step"][-1] <= word["step"]
    assert word["on_disk"] >= 20


def test_a_full_disk_is_told_on_the_stream_to_the_notebook_and_printing_goes_on(tmp_path: Path) -> None:
    (tmp_path / "rank-00003").mkdir()
    (tmp_path / "rank-00003" / "events.arrow").symlink_to("/dev/full")
    heard = io.StringIO()
    with RankLogWriter(tmp_path, 3, flush_s=60, on_failure=telling(heard, 3)) as log:
        log.event("state", "running")
        log.flush()
        log.event("state", "finished")
    assert heard.getvalue() == "rank 3 can no longer write its log: No space left on device. Training continues.\n"
    heard.close()
    telling(heard, 3)(OSError(28, "No space left on device"))  # nobody hears it, and nothing breaks

    before = io.StringIO()
    with contextlib.suppress(OSError), open("/dev/full", "w", buffering=1, encoding="utf-8") as kept:  # on closing it
        tee = Tee(kept, before)
        for line in ("one\n", "two\n"):
            assert tee.write(line) == 4
            tee.flush()
    assert before.getvalue() == "one\ntwo\n"

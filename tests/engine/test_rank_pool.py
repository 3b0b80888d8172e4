"""The tests' own ranks: an answer belongs to the test that asked, and ranks are kept until a call fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.engine.rank_pool import RankFailed, RankPool


def repeat(rank: int, ranks: int, directory: Path, *, text: str) -> str:
    return text


def process(rank: int, ranks: int, directory: Path, *, fails: str = "") -> int:
    """The id of the process, unless it ``fails`` on rank 1, for which rank 0 waits."""
    if fails and rank == 0:
        time.sleep(60)
    if fails == "raises":
        raise ValueError("of rank 1")
    if fails == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fails == "hangs":
        time.sleep(60)
    return os.getpid()


def test_an_answer_that_nobody_waited_for_is_passed_over(pool: RankPool) -> None:
    function = f"{__name__}:repeat"
    asked = {"ranks": 1, "function": function, "timeout": 60.0, "lost": (), "imports": [__name__], "kept_for": ""}
    pool.send({**asked, "arguments": {"text": "a test that was interrupted"}})
    assert pool.run(1, function, text="the next test") == ["the next test"]


def test_ranks_are_kept_for_the_calls_that_say_so(pool: RankPool) -> None:
    function = f"{__name__}:process"
    first = pool.run(1, function, kept_for="one")
    both = pool.run(2, function, kept_for="one")
    assert both[:1] == first
    assert pool.run(1, function, kept_for="one") == first
    others = pool.run(2, function), pool.run(2, function), pool.run(2, function, kept_for="another")
    assert len({*both, *(process for each in others for process in each)}) == 8
    assert pool.run(2, function, kept_for="one") == both


@pytest.mark.parametrize(
    ("fails", "text"),
    [("raises", "ValueError: of rank 1"), ("dies", "rank 1: ended with -9"), ("hangs", f"in {process.__name__}")],
)
def test_a_call_that_fails_ends_them(fails: str, text: str, pool: RankPool) -> None:
    function = f"{__name__}:process"
    before = pool.run(2, function, kept_for="failing")
    with pytest.raises(RankFailed, match=text):
        pool.run(2, function, kept_for="failing", fails=fails, timeout_s=5.0 if fails == "hangs" else 300.0)
    assert not set(before) & set(pool.run(2, function, kept_for="failing"))

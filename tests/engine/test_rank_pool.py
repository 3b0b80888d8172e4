"""The tests' own ranks: an answer belongs to the test that asked."""

from __future__ import annotations

from pathlib import Path

from tests.engine.rank_pool import RankPool


def repeat(rank: int, ranks: int, directory: Path, *, text: str) -> str:
    return text


def test_an_answer_that_nobody_waited_for_is_passed_over(pool: RankPool) -> None:
    asked = {"ranks": 1, "function": f"{__name__}:repeat", "timeout": 60.0, "lost": (), "imports": [__name__]}
    pool.send({**asked, "arguments": {"text": "a test that was interrupted"}})
    assert pool.run(1, asked["function"], text="the next test") == ["the next test"]

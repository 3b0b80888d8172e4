"""A cell on ranks: it ends for its callbacks whatever is lost on the way."""

import threading
from types import SimpleNamespace

import pytest

from tests.waiting import WAIT_S
from workbench.cluster import cells
from workbench.cluster.cells import Submission


@pytest.mark.parametrize("is_death_first", [False, True])
def test_it_ends_when_one_rank_dies_and_output_of_the_other_is_lost(
    monkeypatch: pytest.MonkeyPatch, is_death_first: bool
) -> None:
    monkeypatch.setattr(cells, "_OUTPUT_TIMEOUT_S", 0.05)
    submission, ended = Submission("1", [0, 1]), threading.Event()
    submission.add_done_callback(lambda _: ended.set())
    updates = [lambda: submission.mark_dead(0, "killed"), lambda: submission.add_reply(1, SimpleNamespace())]
    for update in updates if is_death_first else reversed(updates):
        assert not ended.is_set()
        update()
    assert ended.wait(WAIT_S)
    assert submission.dead_ranks() == {0: "killed"} and submission.finished_ranks() == [0, 1]


def test_output_that_still_arrives_after_the_reply_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much output reaches a busy notebook long after the reply."""
    now = [0.0]
    monkeypatch.setattr(cells, "time", SimpleNamespace(monotonic=lambda: now[0]))
    submission = Submission("1", [0])
    submission.add_reply(0, SimpleNamespace())
    now[0] = 0.9 * cells._OUTPUT_TIMEOUT_S
    submission.add_output(0, {"header": {"msg_type": "stream"}, "content": {"name": "stdout", "text": "x"}})
    now[0] = 1.8 * cells._OUTPUT_TIMEOUT_S
    assert submission.running_ranks() == [0]
    now[0] = 2 * cells._OUTPUT_TIMEOUT_S
    assert submission.finished_ranks() == [0]

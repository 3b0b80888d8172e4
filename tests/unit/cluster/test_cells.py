"""A cell on ranks: it ends for its callbacks whatever is lost on the way."""

import threading
from types import SimpleNamespace

import pytest

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
    assert ended.wait(60)
    assert submission.dead_ranks() == {0: "killed"} and submission.finished_ranks() == [0, 1]

"""Messages from rank 0 and sums, through a mapped file, and between hosts that share none."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.waiting import WAIT_S
from workbench.engine.agree.shared_slots import PeerLostError, SharedSlots

MESSAGES = [(7 * number, -(2**40) * number) for number in range(1000)]


def test_every_message_arrives_in_order_however_late_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    SharedSlots.create(path, 3, nonce=5)
    source, *readers = (SharedSlots(path, rank, 3) for rank in range(3))
    assert {slots.nonce for slots in (source, *readers)} == {5}
    found: list[list[tuple[int, int]]] = [[], []]
    threads = [
        threading.Thread(target=lambda i=i: found[i].extend(readers[i].receive() for _ in MESSAGES)) for i in range(2)
    ]
    threads[0].start()
    threading.Timer(0.1, threads[1].start).start()  # rank 0 has to wait for it after 64
    for message in MESSAGES:
        source.send(*message)
    for thread in threads:
        thread.join(WAIT_S)
    assert found == [MESSAGES, MESSAGES]


def test_all_ranks_get_the_same_sums_however_far_they_are_apart(tmp_path: Path) -> None:
    path, ranks, sums = tmp_path / "slots", 3, 600
    SharedSlots.create(path, ranks, nonce=5)
    values = [[(0.1 * number * (rank - 1), 2.0 ** (number - 300)) for number in range(sums)] for rank in range(ranks)]
    values[1][17] = (math.nan, math.inf)
    found: list[list[tuple[float, float]]] = [[] for _ in range(ranks)]

    def rank_main(rank: int, slots: SharedSlots) -> None:
        for number, pair in enumerate(values[rank]):
            if number % (50 + 17 * rank) == rank:
                time.sleep(0.03)  # now this rank is late, now another
            found[rank].append(slots.summed(*pair))

    threads = [threading.Thread(target=rank_main, args=(rank, SharedSlots(path, rank, ranks))) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    expected = [tuple(a + b + c for a, b, c in zip(*several, strict=True)) for several in zip(*values, strict=True)]
    for rank in range(ranks):
        np.testing.assert_array_equal(found[rank], expected)


@contextmanager
def as_a_process_that_has_ended() -> Iterator[None]:
    """What is made meanwhile is made by a process of which only the number is left."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(WAIT_S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        yield


def test_a_rank_that_waits_for_a_sum_notices_that_another_rank_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    SharedSlots.create(path, 2, nonce=1)
    with as_a_process_that_has_ended():
        SharedSlots(path, 1, 2)
    with pytest.raises(PeerLostError, match="rank 1 has ended"):
        SharedSlots(path, 0, 2).summed(0.0, 0.0)


def test_a_reader_notices_that_rank_0_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    with as_a_process_that_has_ended():
        SharedSlots.create(path, 2, nonce=1)
    with pytest.raises(PeerLostError, match="rank 0 has ended"):
        SharedSlots(path, 1, 2).receive()


def test_ranks_do_not_wait_for_one_that_has_left_but_hear_what_it_said(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    SharedSlots.create(path, 2, nonce=1)
    first, second = SharedSlots(path, 0, 2), SharedSlots(path, 1, 2)
    first.check()
    first.send(3, 4)
    first.leave()
    assert second.receive() == (3, 4)
    with pytest.raises(PeerLostError, match="rank 0 has ended"):
        second.receive()
    second.leave()
    with pytest.raises(PeerLostError, match="rank 1 has ended"):
        first.check()


def test_ranks_that_share_no_file_agree_with_and_without_a_sum_in_each_step(pool) -> None:
    def trained(pause_s: float, **how: Any) -> list[dict[str, Any]]:
        script = {"1": [["lr", 0.001]], "2": [["pause", None]], "paused": [[pause_s, ["resume", None]]]}
        arguments = {"model": "plain", "options": {"plugin": "ddp"}, "steps": 6, "script": script}
        return pool.run(2, "tests.engine.steered:train", **how, **arguments)

    shared, without = trained(0.2), trained(0.2, one_host=False)
    # a pause longer than the time after which a collective fails; no rank of a busy machine is so much later
    riding = trained(16, one_host=False, guarded=True, collective_timeout_s=15.0)
    for other in (without, riding):
        assert [rank["rows"] for rank in shared] == [rank["rows"] for rank in other]
    assert shared[0]["shared"] and not without[0]["shared"] and not riding[0]["shared"]


def test_between_hosts_all_ranks_notice_that_one_was_killed(pool) -> None:
    options = {"plugin": "ddp", "save_every": 2, "batch_size": 6}
    arguments = {
        "model": "plain",
        "options": options,
        "steps": 9,
        "one_host": False,
        "guarded": True,
        "dies_at_write": 5,
    }
    found = pool.run(3, "tests.engine.steered:killed_writer", lost=(2,), **arguments)
    assert found[0]["failed"] and found[1]["failed"]


def test_between_hosts_what_is_agreed_comes_with_a_sum_and_by_itself_only_without_one(pool) -> None:
    found = pool.run(3, "tests.engine.steered:ride", rounds=10)
    for rank in found:
        assert rank["heard"] == [2**40 + number for number in range(10)]
        assert rank["met"] == 10
        firsts, seconds = zip(*rank["sums"], strict=True)
        assert firsts == (0.1 + 0.2,) * 5, "added in the order of ranks"
        np.testing.assert_array_equal(seconds, [3e300, 3e300, math.nan, 3e300, 3e300])

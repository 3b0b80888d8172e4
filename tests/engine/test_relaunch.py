"""Ranks join, train, leave and join again under another plan, also after a failure or the death of a peer."""

from __future__ import annotations

import socket

import pytest

PLANS = [
    ("llama", {"plugin": "hybrid", "tp": 2}),
    ("gpt2", {"plugin": "ddp"}),
    ("gpt2", {"plugin": "hybrid", "pp": 2, "micro_batches": 2}),
    ("plain", {"plugin": "zero1"}),
    ("llama", {"plugin": "hybrid"}),
    ("llama", {"plugin": "zero2"}),
]


def test_one_process_trains_under_many_plans(pool, plain_loop):
    twice = PLANS + PLANS
    found = pool.run(2, "tests.engine.relaunch:train_all", plans=twice)[0]
    for (model, _), losses in zip(twice, found["losses"], strict=True):
        expected = plain_loop(model, clip=0.0)["losses"][: len(losses)]
        assert losses == pytest.approx(expected, abs=1e-5)
    half = len(PLANS)
    assert found["descriptors"][-1] <= found["descriptors"][half - 1] + 2, "the second round leaks nothing"
    assert found["threads"][-1] <= found["threads"][half - 1] + 1


def test_fewer_ranks_after_more(pool):
    found = pool.run(4, "tests.engine.relaunch:shrink")
    assert found[0] == found[1]
    assert found[2] is found[3] is None


def test_dropout_of_split_modules_depends_on_no_earlier_run(pool):
    def losses(ranks: int) -> list[float]:
        arguments = {"model": "gpt2-drop", "options": {"plugin": "hybrid", "tp": ranks}, "steps": 2}
        found = pool.run(ranks, "tests.engine.steered:train", kept_for="dropout", **arguments)
        return [row[1] for row in found[0]["rows"]]

    alone = losses(2)
    assert losses(2) == alone
    assert len(losses(4)) == 2  # two of which have split no module before


def test_a_failure_in_training_leaves_the_ranks_usable(pool):
    assert pool.run(2, "tests.engine.relaunch:after_failure") == [True, True]


def test_a_peer_that_dies_is_noticed_and_leaving_does_not_hang(pool):
    found, lost = pool.run(2, "tests.engine.relaunch:after_death", lost=[1])
    assert lost is None
    assert found == {"noticed": True, "trained_alone": True}


def test_missing_peers_are_named(pool):
    (message,) = pool.run(1, "tests.engine.relaunch:alone", join_timeout_s=0.5)
    assert "waited 0.5 s for rank(s) 1 of 2" in message


def test_rank_0_that_never_starts_is_named(pool):
    (message,) = pool.run(1, "tests.engine.relaunch:without_rank_0")
    assert "rank 0 did not start" in message


def test_taken_port_is_named(pool):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (message,) = pool.run(1, "tests.engine.relaunch:on_port", port=taken.getsockname()[1])
    assert "cannot listen on 127.0.0.1" in message
    assert "Free the port" in message

"""``--network``: collectives pass an emulated link, byte by byte, and compute the same."""

from __future__ import annotations

import pytest

from tests.engine.communicated import SHAPES, STEPS
from workbench.core import algorithms

TEXTS, LOCAL = ["bf16", "topk:0.1+ef", "powersgd:1"], ["diloco:5"]
WHOLE = 4 * (6 * 20 + 6 + 4 * 6 + 4)


@pytest.fixture(scope="module")
def trained(request, torch_pool):
    arguments = {"kept_for": request.module.__name__, "texts": TEXTS, "local": LOCAL}
    train = "tests.engine.networked:train"
    return [torch_pool.run(2, train, network=network, **arguments) for network in ("", "1Gbit,50us")]


def test_the_weights_are_those_without_an_emulated_network(trained):
    plain, emulated = trained
    for one, other in zip(plain, emulated, strict=True):
        for text in ("", *TEXTS, *LOCAL):
            assert one["found"][text]["weights"] == other["found"][text]["weights"], text


def test_what_passes_the_link_are_the_bytes_of_the_closed_forms(trained):
    plain, emulated = trained
    assert not any(found["passed"] for rank in plain for found in rank["found"].values())
    for rank in emulated:
        sent = {
            text: sum(bytes_ for kind, bytes_ in found["passed"] if kind in ("all_reduce", "all_gather"))
            for text, found in rank["found"].items()
        }
        for text in TEXTS:
            chosen = algorithms.chosen(text)
            ranks = 2 if chosen.algorithm.collective == "all_gather" else 1  # which counts the output
            flags = 4 * (len(SHAPES) + 1)  # of the first step, which gradients there are
            assert sent[text] == ranks * chosen.message_bytes(list(SHAPES.values())) * STEPS + flags, text
        assert sent[""] == WHOLE * STEPS
        means = WHOLE * (STEPS - STEPS // 5)  # of evaluations where ranks differ
        assert sent["diloco:5"] == WHOLE * STEPS // 5 + means


def test_the_functions_and_the_thread_are_given_back(trained):
    plain, emulated = trained
    for one, other in zip(plain, emulated, strict=True):
        assert "emulated-network" in other["threads"] and "emulated-network" not in one["threads"]
        assert not other["left"] and one["restored"] == other["restored"]


def test_no_way_to_wait_is_over_before_its_bytes_have_passed(torch_pool):
    for rank in torch_pool.run(2, "tests.engine.networked:waits", kept_for=__name__):
        assert min(rank["later"].values()) >= 0, rank["later"]
        assert rank["other_group"] == 0 and rank["sum"] == 2.0**5
        found = rank["measured"]
        assert (found["network"], found["asked_bits_per_s"], found["asked_latency_s"]) == ("8Mbit,5ms", 8e6, 5e-3)
        assert found["bits_per_s"] > 0 and found["latency_s"] >= 5e-3

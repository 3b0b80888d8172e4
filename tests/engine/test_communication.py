"""Communication algorithms against NumPy, and against the bytes that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.engine import compressed
from tests.engine.communicated import SHAPES
from workbench.core import algorithms, registry

TEXTS = ["fp16", "bf16", "int8", "int4", "terngrad+ef", "topk:0.1", "topk:0.1+ef", "randomk:0.2+ef", "sign+ef"]
TEXTS += ["sign", "signsgd", "powersgd:1", "powersgd:2"]
#: of weights near 0.3. 16 bits are rounded in another order on ranks (the sum of 4). Of 12,800 roundings to 255 levels
#: some 0.1 fall on the other side of a level in fp32, which moves a weight by 5e-4
TOLERANCE = {"fp16": 1e-3, "bf16": 1e-2, "int8": 1e-3}


@pytest.fixture(scope="module", params=[2, 4])
def trained(request, torch_pool):
    ranks = request.param
    kept = request.module.__name__
    return torch_pool.run(ranks, "tests.engine.communicated:train", kept_for=kept, texts=TEXTS)


def test_each_algorithm_is_tried():
    """Those of local steps are in ``test_local_steps.py``."""
    compressors = {name for name in registry.entries(algorithms.GROUP) if not algorithms.is_local(name)}
    assert {text.partition(":")[0].partition("+")[0] for text in TEXTS} == compressors


@pytest.mark.parametrize("text", TEXTS)
def test_it_trains_as_numpy_does(trained, text):
    chosen = algorithms.chosen(text)
    expected = compressed.train(chosen.algorithm.name, chosen.number, feedback=chosen.feedback, ranks=len(trained))
    for rank in trained:
        for found, right in zip(rank[text]["weights"], expected, strict=True):
            for name in SHAPES:
                assert np.allclose(found[name], right[name], atol=TOLERANCE.get(text, 2e-5)), name


@pytest.mark.parametrize("text", TEXTS)
def test_all_ranks_have_the_same_weights(trained, text):
    first, *others = [rank[text]["weights"][-1] for rank in trained]
    assert all(other == first for other in others)


@pytest.mark.parametrize("text", TEXTS)
def test_it_sends_the_bytes_that_it_promises(trained, text):
    chosen = algorithms.chosen(text)
    kinds = {"all_gather": "all_gather_single"}
    kind = kinds.get(chosen.algorithm.collective, chosen.algorithm.collective)
    promised = chosen.message_bytes(list(SHAPES.values()))
    for step in trained[0][text]["sent"]:  # the first is reduced after backward, the others by DDP's buckets
        assert {name for name, _ in step} == {kind}
        assert sum(size for _, size in step) == promised
    whole = 4 * sum(math.prod(shape) for shape in SHAPES.values())
    assert promised < whole


@pytest.mark.parametrize("text", TEXTS)
def test_it_keeps_the_memory_that_it_promises(trained, text):
    kept = [np.size(tensor) for name, tensor in trained[0][text]["kept"].items() if name != "step"]
    assert 4 * sum(kept) == algorithms.chosen(text).kept_bytes(list(SHAPES.values()))


def test_without_error_feedback_the_same_elements_are_never_sent(trained):
    """Top-k keeps nothing of what it leaves out; with feedback every element is sent in time."""
    moved = {}
    for text in ("topk:0.1", "topk:0.1+ef"):
        weights = trained[0][text]["weights"]
        changed = [np.not_equal(weights[-1][name], weights[0][name]).ravel() for name in SHAPES]
        moved[text] = np.concatenate(changed).mean()
    assert moved["topk:0.1"] < moved["topk:0.1+ef"]


def test_a_gradient_that_is_not_a_number_reaches_all_ranks_and_is_not_kept(torch_pool):
    found = torch_pool.run(2, "tests.engine.communicated:train", kept_for=__name__, texts=TEXTS, poison=5)
    for text in TEXTS:
        for rank in found:
            poisoned, following, *_ = rank[text]["gradients"]
            assert all(np.isnan(gradient).any() for gradient in poisoned.values()), text
            assert all(np.isfinite(gradient).all() for gradient in following.values()), text
            assert all(np.isfinite(tensor).all() for tensor in rank[text]["kept"].values()), text

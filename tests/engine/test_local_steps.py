"""Algorithms under which ranks step by themselves, against NumPy, and against the bytes that they promise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine import stepped
from tests.engine.communicated import SHAPES, STEPS
from workbench.core import algorithms, registry

TEXTS = ["local-sgd:4", "local-sgd:1", "post-local-sgd:3:after=6", "diloco:5", "diloco:4:lr=1:momentum=0.5"]
TEXTS += ["streaming-diloco:5:fragments=3", "sparta:0.1"]
ELEMENTS = sum(int(np.prod(shape)) for shape in SHAPES.values())


@pytest.fixture(scope="module", params=[2, 4])
def trained(request, torch_pool):
    kept = request.module.__name__
    return torch_pool.run(request.param, "tests.engine.communicated:train_locally", kept_for=kept, texts=TEXTS)


def test_each_algorithm_is_tried():
    local = {name for name in registry.entries(algorithms.GROUP) if algorithms.is_local(name)}
    assert {text.partition(":")[0] for text in TEXTS} == local == set(stepped.RULES)


@pytest.mark.parametrize("text", TEXTS)
def test_each_rank_trains_as_numpy_does(trained, text):
    chosen = algorithms.chosen(text)
    expected = stepped.train(chosen.algorithm.name, chosen.number, dict(chosen.settings), len(trained))
    for rank, found in enumerate(trained):
        for step in range(STEPS):
            for name in SHAPES:
                assert np.allclose(found[text]["weights"][step][name], expected[step][rank][name], atol=2e-5), name
                mean = np.mean([weights[name] for weights in expected[step]], axis=0)
                assert np.allclose(found[text]["means"][step][name], mean, atol=2e-5), name


@pytest.mark.parametrize("text", TEXTS)
def test_ranks_differ_between_exchanges_and_evaluate_the_same_weights(trained, text):
    steps = range(STEPS)
    alike = [
        all(rank[text]["weights"][step] == trained[0][text]["weights"][step] for rank in trained) for step in steps
    ]
    assert all(rank[text]["means"] == trained[0][text]["means"] for rank in trained)
    expected = {
        "local-sgd:4": [step % 4 == 3 for step in steps],
        "local-sgd:1": [True] * STEPS,
        "post-local-sgd:3:after=6": [step < 6 or step % 3 == 2 for step in steps],
        "diloco:5": [step % 5 == 4 for step in steps],
        "diloco:4:lr=1:momentum=0.5": [step % 4 == 3 for step in steps],
    }
    assert alike == expected.get(text, [False] * STEPS)


@pytest.mark.parametrize("text", TEXTS)
def test_it_sends_the_bytes_that_it_promises(trained, text):
    """On average over the steps: of post-local SGD over those after the switch, whose whole gradients DDP sends."""
    chosen = algorithms.chosen(text)
    first = int(chosen.settings.get("after", 0))
    sent = [size for step in trained[0][text]["sent"][first:] for _, size in step]
    assert {name for step in trained[0][text]["sent"] for name, _ in step} == {chosen.algorithm.collective}
    rounds = (STEPS - first) // chosen.number if chosen.number >= 1 else STEPS
    per_round = chosen.message_bytes(list(SHAPES.values())) * max(chosen.number, 1)
    if text.startswith("streaming"):  # fragments at steps 5, 6, 8 | 10, 11, 13 | 15, 16, 18 | 20
        sizes = [4 * int(np.prod(shape)) for shape in SHAPES.values()]
        assert sum(sent) == 3 * per_round + sizes[0] + sizes[3]
        assert max(sent) < 4 * ELEMENTS, "less at once than the whole model"
    else:
        assert sum(sent) == rounds * per_round
    assert not any(trained[0][text]["sent"][:first]), "DDP's reducer sends by itself"


@pytest.mark.parametrize("text", TEXTS)
def test_it_keeps_the_memory_that_it_promises(trained, text):
    kept = [np.size(tensor) for name, tensor in trained[0][text]["kept"].items() if "/" in name]
    assert 4 * sum(kept) == algorithms.chosen(text).kept_bytes(list(SHAPES.values()))


def test_a_frozen_parameter_is_exchanged_once_and_then_stays(torch_pool):
    """Ranks part until step 5, and it is frozen from step 6 to 14: step 8 is its last exchange before it stays."""
    texts = ["local-sgd:4", "diloco:4"]
    found = torch_pool.run(
        2, "tests.engine.communicated:train_locally", kept_for=__name__, texts=texts, frozen="weight"
    )
    for text in texts:
        own = [[step["weight"] for step in rank[text]["weights"]] for rank in found]
        for one in own:
            assert one[4] == one[5] == one[6] != one[7], "as it was until ranks exchange it"
            assert one[7] == one[8] == one[11] == one[13] != one[14]
        assert own[0][6] != own[1][6] and own[0][13] == own[1][13]
        head = [[step["head.weight"] for step in rank[text]["weights"]] for rank in found]
        assert head[0][11] == head[1][11] != head[0][10], "the others are exchanged as before"

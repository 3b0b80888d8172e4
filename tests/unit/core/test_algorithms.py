"""What ``--algorithm`` says, and what it refuses."""

from __future__ import annotations

import math

import pytest

from workbench.core import algorithms, plan_grammar
from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.plans.requirements import check_capabilities
from workbench.errors import ConfigError

SHAPES = [(), (5,), (30, 20), (3, 4, 5)]
ELEMENTS = 1 + 5 + 600 + 60


@pytest.mark.parametrize(
    ("text", "number", "feedback", "shown"),
    [
        ("bf16", 0, False, "bf16"),
        ("int8+ef", 0, True, "int8+ef"),
        ("topk", 0.01, False, "topk:0.01"),
        ("topk:0.05+ef", 0.05, True, "topk:0.05+ef"),
        ("topk:1e-3", 0.001, False, "topk:0.001"),
        ("powersgd", 4, True, "powersgd:4"),
        ("powersgd:2+ef", 2, True, "powersgd:2"),
    ],
)
def test_words_are_read_and_shown(text, number, feedback, shown):
    found = algorithms.chosen(text)
    assert (found.number, found.feedback, found.text) == (number, feedback, shown)
    assert algorithms.chosen(shown) == found
    for framework in ("colossal", "torch"):
        plan = ParallelPlan(ranks=2, framework=framework, algorithm=text)
        assert plan.algorithm == shown
        assert ParallelPlan.parse(plan.describe()) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("powersgb", "did you mean 'powersgd'"),
        ("bf16:3", "bf16 takes no number"),
        ("topk:0", "the share of elements that is sent must be a number from 1e-06 to 1, such as topk:0.01"),
        ("topk:few", "the share of elements"),
        ("topk:nan", "the share of elements"),
        ("powersgd:1.5", "the rank must be a whole number at least 1"),
        ("powersgd:", "the rank must be"),
        ("signsgd+ef", "signsgd has no error feedback"),
        ("topk+feedback", "write topk[+]ef"),
        ("", "unknown algorithm ''"),
    ],
)
def test_nonsense_is_refused(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        algorithms.chosen(text)
    assert caught.value.field == "--algorithm"


@pytest.mark.parametrize("plugin", ["zero1", "zero2", "hybrid"])
def test_plugins_that_share_out_gradients_have_none(plugin):
    with pytest.raises(ConfigError, match=f"--algorithm bf16 needs --plugin ddp, not {plugin}"):
        TrainSpec.from_options({"ranks": 2, "plugin": plugin, "algorithm": "bf16"})


def test_a_plan_says_one_algorithm():
    assert ParallelPlan.parse("torch ddp4:topk:0.1+ef sync-batchnorm").algorithm == "topk:0.1+ef"
    with pytest.raises(ConfigError, match="sets plugin twice: leave out 'ddp:fp16'"):
        ParallelPlan.parse("ddp2:bf16 ddp:fp16")
    with pytest.raises(ConfigError, match="--plan 'ddp2:bf16' says algorithm bf16, and --algorithm says fp16"):
        plan_grammar.expanded({"plan": "ddp2:bf16", "algorithm": "fp16"})


def test_a_plan_with_an_algorithm_of_another_machine_is_shown_and_not_trained():
    plan = ParallelPlan.recorded({"ranks": 2, "plugin": "ddp", "algorithm": "theirs:3+ef"})
    assert plan.describe() == "ddp2:theirs:3+ef"
    with pytest.raises(ConfigError, match="unknown algorithm 'theirs'"):
        check_capabilities(TrainSpec(plan=plan))


def test_bytes_are_those_of_the_closed_forms():
    def sent(text):
        return algorithms.chosen(text).message_bytes(SHAPES)

    assert sent("bf16") == sent("fp16") == 2 * ELEMENTS
    assert sent("int8") == ELEMENTS + 4 * 4
    assert sent("int4") == sum(math.ceil(n / 2) for n in (1, 5, 600, 60)) + 4 * 4
    assert sent("terngrad") == 1 + 2 + 150 + 15 + 4 * 4
    assert sent("sign") == sent("signsgd") == 1 + 1 + 75 + 8 + 4 * 4
    assert sent("topk:0.1") == 8 * (1 + 1 + 60 + 6), "at least one element, with its place"
    assert sent("randomk:0.1") == 4 * (1 + 1 + 60 + 6), "places are drawn alike"
    # 3 x 20: two matrices of rank 2 have 46 elements, of rank 3 69
    assert sent("powersgd:2") == 4 * (1 + 5 + 2 * (30 + 20) + 2 * (3 + 20))
    assert sent("powersgd:3") == 4 * (1 + 5 + 3 * (30 + 20) + 60)
    assert algorithms.chosen("powersgd:2").kept_bytes(SHAPES) == 4 * (ELEMENTS + 2 * 20 + 2 * 20)


def test_settings_stand_behind_the_number():
    chosen = algorithms.chosen("diloco:20:momentum=0.5")
    assert chosen.is_local and chosen.number == 20 and dict(chosen.settings) == {"lr": 0.7, "momentum": 0.5}
    assert chosen.text == "diloco:20:momentum=0.5"
    assert algorithms.normal("diloco:lr=0.70") == "diloco:50", "defaults are not named"
    assert ParallelPlan.parse("torch ddp4:diloco:20:lr=1").describe() == "torch ddp4:diloco:20:lr=1"
    texts = ("diloco:5", "post-local-sgd:5:after=7", "topk", "", "theirs:3")
    assert [algorithms.steps_alone_after(text) for text in texts] == [0, 7, math.inf, math.inf, math.inf]
    assert not algorithms.is_local("bf16") and not algorithms.is_local("") and not algorithms.is_local("theirs:3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("diloco:0", "the number of steps between synchronisations must be a whole number at least 1"),
        ("diloco:50:momentum=2", "--algorithm diloco:momentum=2: the outer momentum must be a number from 0 to 1"),
        ("diloco:50:rate=1", "diloco has no setting 'rate': its settings are lr, momentum"),
        ("bf16:lr=1", "bf16 has no setting 'lr': it has none"),
        ("diloco:50:0.7", "behind the number stand settings, each once, such as diloco:50:lr=0.7, not '0.7'"),
        ("diloco:50:lr=1:lr=2", "each once"),
        ("local-sgd:8+ef", "local-sgd has no error feedback"),
    ],
)
def test_settings_that_there_are_not_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        algorithms.chosen(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp16"}, "each would skip other steps as its own gradients overflow"),
        ({"sync_batchnorm": True}, "would wait for all ranks in every step"),
    ],
)
def test_what_parts_ranks_for_good_is_refused_with_local_steps(options, words):
    spec = TrainSpec.from_options({"ranks": 2, "plugin": "ddp", "algorithm": "diloco:50", **options})
    with pytest.raises(ConfigError, match=words):
        check_capabilities(spec)


def test_local_steps_send_all_weights_once_in_so_many_steps():
    for text in ("local-sgd:8", "post-local-sgd:8", "diloco:8", "streaming-diloco:8"):
        assert algorithms.chosen(text).message_bytes(SHAPES) == 4 * ELEMENTS / 8
    assert algorithms.chosen("sparta:0.1").message_bytes(SHAPES) == 4 * (1 + 1 + 60 + 6)
    calls = {text: algorithms.chosen(text).calls(3) for text in ("bf16", "powersgd", "diloco:8", "streaming-diloco:8")}
    assert calls == {"bf16": 3, "powersgd": 6, "diloco:8": 1 / 8, "streaming-diloco:8": 4 / 8}
    assert algorithms.chosen("diloco").kept_bytes(SHAPES) == 8 * ELEMENTS

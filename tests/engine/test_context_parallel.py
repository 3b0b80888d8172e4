"""Sequences that context-parallel ranks share under framework torch: families train as one process does, or are
refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.engine.rank_pool import RankPool
from tests.engine.split_cases import compare
from tests.engine.split_models import family_of_class
from workbench.engine.frameworks.torch.context.families import FAMILIES

Case = tuple[str, str, dict[str, Any], dict[str, Any]]
CP = {"framework": "torch", "plugin": "context", "cp": 2}
_compare = partial(compare, rtol=2e-5)


def _case(name: str, settings: dict[str, Any]) -> Case:
    return family_of_class(name), name, settings, {}


#: settings in which models differ from the smallest ones, and what is trained of them
SETTINGS: list[Case] = [
    _case("LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}),
    _case("GPT2LMHeadModel", {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}),
    ("llama", "LlamaForCausalLM", {}, {"recompute": True}),
    ("gpt2", "GPT2LMHeadModel", {}, {"recompute": True}),
    ("llama", "LlamaForCausalLM", {}, {"lora": ["q_proj", "v_proj", "down_proj"]}),
    ("gpt2", "GPT2LMHeadModel", {}, {"lora": ["c_attn"]}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("BertForMaskedLM", {}, "whether ranks can share the sequences of BertForMaskedLM is not known"),
    ("T5ForConditionalGeneration", {}, "whether ranks can share the sequences of T5ForConditionalGeneration"),
    ("LlamaForCausalLM", {"attn_implementation": "eager"}, "make it with attn_implementation='sdpa'"),
    ("MixtralForCausalLM", {"output_router_logits": True}, "set output_router_logits=False"),
    ("GPT2LMHeadModel", {"add_cross_attention": True}, "set add_cross_attention=False"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_every_class_trains_as_one_process(family: Any, pool: RankPool) -> None:
    _compare(pool, [_case(name, {}) for name in family.classes], CP)


def test_other_settings_and_sequences_that_do_not_divide_evenly_train_as_one_process(pool: RankPool) -> None:
    """The sequences have 8 positions, of which three ranks have 3, 3 and 2."""
    _compare(pool, SETTINGS, {**CP, "cp": 3}, ranks=3)


def test_what_is_not_shared_rightly_is_refused_by_name(pool: RankPool) -> None:
    cases = [_case(name, settings) for name, settings, _ in REFUSED]
    for found in pool.run(2, "tests.engine.split_ranks:train", cases=cases, options=CP):
        for refusal, (*_, text) in zip(found, REFUSED, strict=True):
            assert isinstance(refusal, str) and text in refusal, refusal


def test_sequences_that_are_shorter_than_there_are_ranks_are_refused(pool: RankPool) -> None:
    found = pool.run(2, "tests.engine.context_ranks:too_short", options=CP)
    assert all(
        "shares each sequence over 2 ranks, and a batch has sequences of 1: use longer ones" in text for text in found
    )


def test_ranks_drop_other_elements_of_their_own_positions_and_the_same_behind_them(pool: RankPool) -> None:
    """Generators that all ranks share draw the same after each pass, so a head that drops something does so alike."""
    found = pool.run(2, "tests.engine.context_ranks:dropped", options=CP)
    assert found[0]["next"] == found[1]["next"] and found[0]["losses"] == found[1]["losses"]
    assert found[0]["kept"] != found[1]["kept"]


def test_text_is_generated_with_a_cache_as_by_one_process(pool: RankPool) -> None:
    first, second = pool.run(2, "tests.engine.context_ranks:generated", options=CP)
    assert first["shared"] == second["shared"] == first["whole"] == second["whole"]

"""Families that framework torch cuts over tensor-parallel ranks: losses and norms are those of one process, or they are
refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.engine.rank_pool import RankPool
from tests.engine.split_cases import RANKS, compare
from tests.engine.split_models import family_of_class
from workbench.engine.frameworks.torch.tensor_parallel.families import FAMILIES

Case = tuple[str, str, dict[str, Any], dict[str, Any]]
TP = {"framework": "torch", "tp": 2}
STAGES = {"framework": "torch", "pp": 2, "micro_batches": 2}
#: families that a pipeline refuses: they have an encoder and a decoder
TWO_LISTS = ("T5", "Whisper")
#: settings in which models differ from the smallest ones
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "vocab_size": 50}),
    ("LlamaForCausalLM", {"vocab_size": 50}),  # tp divides it: the embedding is cut too
    ("GPT2LMHeadModel", {"tie_word_embeddings": False, "vocab_size": 50}),
    ("OPTForCausalLM", {"do_layer_norm_before": False, "attn_implementation": "eager"}),
    ("BloomForCausalLM", {"tie_word_embeddings": False, "apply_residual_connection_post_layernorm": True}),
    ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("FalconForCausalLM", {"parallel_attn": False, "bias": True}),
    ("BertForMaskedLM", {"tie_word_embeddings": False, "position_embedding_type": "relative_key_query"}),
    ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("WhisperForConditionalGeneration", {"tie_word_embeddings": False, "encoder_layers": 1}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("FalconForCausalLM", {"alibi": True}, "set alibi=False in its configuration"),
    ("FalconForCausalLM", {"multi_query": True}, "set multi_query=False in its configuration"),
    ("BloomForCausalLM", {"slow_but_exact": True}, "set slow_but_exact=False"),
    ("CohereForCausalLM", {"use_qk_norm": True}, "set use_qk_norm=False"),
    ("T5ForConditionalGeneration", {"num_heads": 1}, "--tp 2 does not divide num_heads = 1"),
    ("T5ForSequenceClassification", {}, "how to cut T5ForSequenceClassification over ranks is not known"),
]
#: styles of linear layers
LINEAR = ("colwise", "rowwise", "fused", "gathered")
_compare = partial(compare, rtol=2e-5)


def _case(name: str, settings: dict[str, Any]) -> Case:
    return family_of_class(name), name, settings, {}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.title)
def test_every_class_trains_as_one_process(family: Any, pool: RankPool) -> None:
    _compare(pool, [_case(name, {}) for name in family.classes], TP)


def test_pipelines_of_every_family_train_as_one_process(pool: RankPool) -> None:
    """With the head of each family: language models, a masked one, a classifier of images."""
    heads = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForImageClassification")
    named = [next(name for name in f.classes if name.endswith(heads)) for f in FAMILIES if f.title not in TWO_LISTS]
    more = ["MistralForCausalLM", "Qwen2ForCausalLM", "GemmaForCausalLM"]
    _compare(pool, [_case(name, {}) for name in (*named, *more)], STAGES)


def test_settings_of_a_model_are_kept(pool: RankPool) -> None:
    _compare(pool, [_case(*case) for case in SETTINGS], TP)


def test_adapters_train_as_in_one_process(pool: RankPool) -> None:
    """Of every layer that is cut, and of some that are not: BERT's pooler, a head that is the embedding."""
    heads = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForImageClassification", "ForConditionalGeneration")
    cases = []
    for family in FAMILIES:
        name = next(name for name in family.classes if name.endswith(heads))
        layers = {pattern.rpartition(".")[2] for pattern, style in family.styles.items() if style in LINEAR}
        cases.append((family_of_class(name), name, {}, {"lora": sorted(layers)}))
    _compare(pool, cases, TP)


def test_what_is_not_cut_rightly_is_refused_by_name(pool: RankPool) -> None:
    found = pool.run(2, f"{RANKS}:train", cases=[_case(name, settings) for name, settings, _ in REFUSED], options=TP)[0]
    for (*case, text), message in zip(REFUSED, found, strict=True):
        assert text in message, case

"""Models that tensor and pipeline parallelism split: losses and norms are those of one process, or they are refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.engine.rank_pool import RankPool
from tests.engine.split_cases import RANKS, compare
from tests.engine.split_models import DROPOUT
from workbench.engine.frameworks.colossal.families import FAMILIES
from workbench.engine.frameworks.colossal.pipeline_parallel.schedules import INTERLEAVED_FAMILIES

PLANS: dict[str, dict[str, Any]] = {"tp": {"tp": 2}, "pp": {"pp": 2, "micro_batches": 2}}
TP_PP = {"tp": 2, "pp": 2, "micro_batches": 2}
LM = [
    ("llama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("mixtral", "MixtralForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("gptj", "GPTJForCausalLM"),
    ("opt", "OPTForCausalLM"),
    ("bloom", "BloomForCausalLM"),
    ("falcon", "FalconForCausalLM"),
    ("bert", "BertForMaskedLM"),
    ("t5", "T5ForConditionalGeneration"),
    ("whisper", "WhisperForConditionalGeneration"),
    ("vit", "ViTForImageClassification"),
]
#: settings in which models differ from the smallest ones
SETTINGS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "num_hidden_layers": 3}),
    ("llama", "LlamaForSequenceClassification", {"num_labels": 1}),
    ("llama", "LlamaForSequenceClassification", {"num_labels": 5}),
    ("mistral", "MistralForCausalLM", {"head_dim": 16, "attn_implementation": "eager"}),
    ("qwen2", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    ("gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}),
    ("opt", "OPTForCausalLM", {"tie_word_embeddings": False, "attn_implementation": "eager"}),
    ("opt", "OPTForCausalLM", {"do_layer_norm_before": False}),
    ("bloom", "BloomForCausalLM", {"tie_word_embeddings": False, "apply_residual_connection_post_layernorm": True}),
    ("falcon", "FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", "FalconForCausalLM", {"multi_query": True, "parallel_attn": False, "bias": True}),
    ("bert", "BertForMaskedLM", {"tie_word_embeddings": False}),
    ("t5", "T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("t5", "T5ForConditionalGeneration", {"num_layers": 3, "num_decoder_layers": 1}),
    ("whisper", "WhisperForConditionalGeneration", {"encoder_layers": 1, "decoder_layers": 3}),
]
ADAPTED = [case for case in [*((*each, {}) for each in LM), *SETTINGS] if FAMILIES[case[0]].adapted]
REFUSED: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("cohere", "CohereForCausalLM", {}, "tp", "cannot split a CohereForCausalLM: it splits models of the transformers"),
    ("cohere", "CohereForCausalLM", {}, "pp", "cannot split a CohereForCausalLM: it splits models of the transformers"),
    ("llama", "LlamaForTokenClassification", {}, "tp", "of the Llama family LlamaModel, LlamaForCausalLM, LlamaFor"),
    ("llama", "LlamaForTokenClassification", {}, "pp", "cannot split a LlamaForTokenClassification"),
    ("mixtral", "MixtralForSequenceClassification", {}, "pp", "zero1 or zero2, or --tp"),
    ("mixtral", "MixtralForCausalLM", {"output_router_logits": True}, "pp", "set output_router_logits=False"),
    ("qwen2", "Qwen2ForCausalLM", {"use_sliding_window": True}, "pp", "set use_sliding_window=False"),
    ("falcon", "FalconForCausalLM", {"alibi": True}, "tp", "set alibi=False"),
    ("falcon", "FalconForCausalLM", {"alibi": True}, "pp", "set alibi=False"),
    ("falcon", "FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 1}, "tp", "1 key-value heads"),
    ("bloom", "BloomForCausalLM", {"slow_but_exact": True}, "tp", "set slow_but_exact=False"),
    ("bert", "BertModel", {"position_embedding_type": "relative_key"}, "tp", 'position_embedding_type="absolute"'),
    (
        "whisper",
        "WhisperForAudioClassification",
        {"use_weighted_layer_sum": True},
        "pp",
        "use_weighted_layer_sum=False",
    ),
    ("gpt2", "GPT2LMHeadModel", {"output_hidden_states": True}, "pp", "set output_hidden_states=False"),
    ("gpt2", "GPT2LMHeadModel", {"return_dict": False}, "tp", "set return_dict=True"),
    ("gpt2", "GPT2LMHeadModel", {"n_layer": 1}, "pp", "--pp 2 is more than the 1 layers"),
]

_compare = partial(compare, rtol=5e-4)


@pytest.mark.parametrize("axis", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_trains_as_one_process(family: str, axis: str, pool: RankPool) -> None:
    _compare(pool, [(family, name, {}, {}) for name in FAMILIES[family].classes(axis)], PLANS[axis])


@pytest.mark.parametrize("axis", PLANS)
def test_settings_of_a_model_are_kept(axis: str, pool: RankPool) -> None:
    _compare(pool, [(*case, {}) for case in SETTINGS], PLANS[axis])


@pytest.mark.parametrize("axis", PLANS)
def test_adapters_train_as_in_one_process(axis: str, pool: RankPool) -> None:
    """Also with heads that are the embedding, which is frozen then and has no gradient to add up between stages."""
    _compare(pool, [(*case, {"lora": list(FAMILIES[case[0]].adapted)}) for case in ADAPTED], PLANS[axis])


@pytest.mark.parametrize("axis", PLANS)
def test_checkpointed_layers_of_the_default_kind(axis: str, pool: RankPool) -> None:
    cases = [
        (*case, {}, {"recompute": True}) for case in LM if case[0] in ("llama", "mistral", "mixtral", "gpt2", "t5")
    ]
    _compare(pool, cases, PLANS[axis])


def test_interleaved_stages(pool: RankPool) -> None:
    layers = {"gpt2": "n_layer"}
    cases = [
        (*case, {layers.get(case[0], "num_hidden_layers"): 4}, {"recompute": case[0] in ("llama", "gpt2")})
        for case in LM
        if case[0] in INTERLEAVED_FAMILIES
    ]
    assert len(cases) == len(INTERLEAVED_FAMILIES)
    options = {**PLANS["pp"], "schedule": "interleaved"}
    _compare(pool, cases, options)
    refused = [
        ("opt", "OPTForCausalLM", {"num_hidden_layers": 4}, {}),
        ("gpt2", "GPT2DoubleHeadsModel", {"n_layer": 4}, {}),
        ("llama", "LlamaForCausalLM", {"num_hidden_layers": 3}, {}),
    ]
    messages = pool.run(2, f"{RANKS}:train", cases=refused, options=options)[0]
    for text, message in zip(
        ("layers of OPT each part has", "layers of it each", "it has 3 layers"), messages, strict=True
    ):
        assert text in message and "use --schedule 1f1b" in message


@pytest.mark.parametrize("mode", ["split_gather", "ring"])
def test_ranks_that_share_the_positions_of_a_sequence(mode: str, pool: RankPool) -> None:
    """Compared with eager attention: torch's sdpa multiplies gradients of rows that padding hides wholly on CPUs. The
    sequences of odd length are padded to what the ranks can share."""
    eager = {"attn_implementation": "eager"}
    biased = {**eager, "tie_word_embeddings": True, "attention_bias": True, "num_hidden_layers": 3}
    cases = [
        ("llama", "LlamaForCausalLM", eager, {"recompute": True}),
        ("llama", "LlamaForSequenceClassification", {**eager, "num_labels": 5}, {}),
        ("llama", "LlamaForCausalLM", biased, {}),
        ("llama", "LlamaForCausalLM", eager, {"lora": list(FAMILIES["llama"].adapted)}),
    ]
    _compare(pool, cases, {"tp": 2, "accumulate": 2, "sequence_parallel": mode})
    refused = pool.run(2, f"{RANKS}:train", cases=[("gpt2", "GPT2LMHeadModel", {}, {})],
                       options={"tp": 2, "sequence_parallel": mode})[0][0]  # fmt: skip
    assert f"--sequence-parallel {mode} cannot train a GPT2LMHeadModel, only LlamaForCausalLM" in refused


def test_tensor_parallelism_with_accumulation(pool: RankPool) -> None:
    cases = [(*case, {}, {}) for case in LM if case[0] in ("llama", "gpt2", "bert", "t5")]
    _compare(pool, cases, {"tp": 2, "accumulate": 2})


def test_tensor_parallelism_in_a_pipeline(pool: RankPool) -> None:
    cases = [(*case, {}, {}) for case in LM if case[0] in ("llama", "qwen2", "opt", "bert", "whisper")]
    _compare(pool, cases, TP_PP, ranks=4)


def test_four_stages(pool: RankPool) -> None:
    cases = [
        ("llama", "LlamaForSequenceClassification", {"num_hidden_layers": 4}, {}),
        ("bert", "BertForMultipleChoice", {"num_hidden_layers": 4}, {}),
        ("t5", "T5EncoderModel", {"num_layers": 4}, {}),
    ]
    _compare(pool, cases, {"pp": 4, "micro_batches": 4}, ranks=4)
    several = [("t5", "T5Model", {"num_layers": 4}, {})]
    options = {"pp": 4, "micro_batches": 4}
    assert "use --pp 2" in pool.run(4, f"{RANKS}:train", cases=several, options=options)[0][0]


def test_weights_that_all_ranks_hold_stay_alike_with_dropout(pool: RankPool) -> None:
    cases = [(family, name, DROPOUT[family], {}) for family, name in LM if family in DROPOUT]
    assert pool.run(2, f"{RANKS}:drifted", cases=cases)[0] == [[]] * len(cases)


@pytest.mark.parametrize("axis", PLANS)
def test_what_is_not_split_rightly_is_refused_by_name(axis: str, pool: RankPool) -> None:
    refused = [((*case, {}), text) for *case, on, text in REFUSED if on == axis]
    adapted = ("bert", "BertModel", {}, {"lora": ["query"]})
    refused.append((adapted, f"--{axis} 2 cannot train LoRA adapters of a BERT model; it can for Llama"))
    found = pool.run(2, f"{RANKS}:train", cases=[case for case, _ in refused], options=PLANS[axis])[0]
    for (case, text), message in zip(refused, found, strict=True):
        assert text in message, case

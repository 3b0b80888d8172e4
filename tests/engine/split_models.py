"""Tiny models of every class that tensor and pipeline parallelism split, and batches for them, the same on every rank.

Weights are far from zero, so that attention, positions and masks matter in the first step. There is no dropout.
"""

from __future__ import annotations

from typing import Any

import torch

from workbench.engine.pretrained.lora import add_adapters

VOCABULARY, LENGTH, BATCH = 49, 8, 8  # an odd vocabulary: no number of ranks divides it
_PAD = 0
_DECODER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_DROP = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
#: family -> name of its configuration and what makes it tiny
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _DECODER),
    "mistral": ("MistralConfig", {**_DECODER, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", _DECODER),
    "mixtral": ("MixtralConfig", {**_DECODER, "num_local_experts": 4, "sliding_window": 4}),
    "cohere": ("CohereConfig", _DECODER),
    "gemma": ("GemmaConfig", {**_DECODER, "head_dim": 4}),
    "qwen3": ("Qwen3Config", {**_DECODER, "head_dim": 4}),
    "gpt2": ("GPT2Config", {**_GPT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "opt": ("OPTConfig", {**_SIZES, "ffn_dim": 32, "word_embed_proj_dim": 8, "dropout": 0.0}),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2, **_DROP}),
    "falcon": ("FalconConfig", {**_SIZES, "multi_query": False, **_DROP}),
    "bert": (
        "BertConfig",
        {**_SIZES, "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "t5": ("T5Config", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}),
    "whisper": (
        "WhisperConfig",
        {
            "d_model": 16,
            "num_mel_bins": 4,
            "max_source_positions": 8,
            **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
        },
    ),
    "vit": (
        "ViTConfig",
        {**_SIZES, "intermediate_size": 32, "image_size": 8, "patch_size": 2, "encoder_stride": 2, "num_labels": 5},
    ),
}
#: settings that turn dropout on
DROPOUT: dict[str, dict[str, float]] = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "gptj": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3},
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "bert": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3},
    "t5": {"dropout_rate": 0.3},
    "whisper": {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3},
    "vit": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3},
}


def family_of_class(name: str) -> str:
    """The family in ``transformers.models`` that a class of this name belongs to."""
    return next(family for family, (kind, _) in _CONFIGS.items() if name.startswith(kind.removesuffix("Config")))


def model(
    family: str, name: str, settings: dict[str, Any], *, recompute: bool = False, lora: list[str] | None = None
) -> torch.nn.Module:
    """A model of the transformers library in training mode. ``recompute``: with activation checkpoints. ``lora``:
    names of layers that have adapters, which alone are trained then."""
    import transformers

    kind, sizes = _CONFIGS[family]
    tokens = {"pad_token_id": _PAD, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    heads = {"vocab_size": VOCABULARY, "classifier_dropout": 0.0, "summary_first_dropout": 0.0, "use_cache": False}
    torch.manual_seed(3)
    network = getattr(transformers, name)(getattr(transformers, kind)(**{**tokens, **heads, **sizes, **settings}))
    if lora is not None:
        add_adapters(network, {"r": 4, "lora_alpha": 8, "target_modules": lora})
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.15)
    if recompute:
        network.gradient_checkpointing_enable()
    return network.train()


def batch(family: str, name: str, step: int, labels: int) -> dict[str, torch.Tensor]:
    """The global batch of a step. Text is padded nowhere, left, right, and without a mask inside, step by step."""
    draw = torch.Generator().manual_seed(step)
    if family == "vit":
        return _images(name, draw, labels)
    if family == "whisper":
        return _sounds(name, draw, labels)
    several = (2,) if name.endswith(("MultipleChoice", "DoubleHeadsModel")) else ()
    ids = torch.randint(3, VOCABULARY, (BATCH, *several, LENGTH), generator=draw)
    places, many = torch.arange(LENGTH), (1 + torch.arange(BATCH) % 3).view(-1, *[1] * (len(several) + 1))
    mask = (torch.ones_like(places, dtype=torch.bool), places >= many, places < LENGTH - many, places != 3)[step % 4]
    mask = mask.expand_as(ids)
    found = {"input_ids": ids.masked_fill(~mask, _PAD)}
    if step % 4 in (1, 2):
        found["attention_mask"] = mask.long()
    return found | _targets(name, draw, ids.masked_fill(~mask, -100), labels)


def _targets(name: str, draw: torch.Generator, ids: torch.Tensor, labels: int) -> dict[str, torch.Tensor]:
    """Labels as the head takes them; ``ids``: those of the text, -100 where it is padded."""
    classes = torch.randint(labels, (BATCH,), generator=draw)
    places = torch.randint(LENGTH, (2, BATCH), generator=draw)
    equal = ids.abs().clamp(max=VOCABULARY - 1)  # each micro-batch has as many labels as the next
    by_head = {
        "ForCausalLM": {"labels": ids},
        "LMHeadModel": {"labels": ids},
        "ForMaskedLM": {"labels": ids},
        "ForPreTraining": {"labels": equal, "next_sentence_label": classes},
        "ForTokenClassification": {"labels": torch.where(ids >= 0, ids % labels, ids)},
        "ForQuestionAnswering": {"start_positions": places[0], "end_positions": places[1]},
        "DoubleHeadsModel": {"mc_token_ids": places.T.contiguous(), "labels": equal, "mc_labels": classes % 2},
        "ForConditionalGeneration": {"labels": ids[..., 2:].contiguous()},
        "T5Model": {"decoder_input_ids": ids.clamp(min=0)},
        "Model": {},
    }
    return next((found for head, found in by_head.items() if name.endswith(head)), {"labels": classes})


def _images(name: str, draw: torch.Generator, labels: int) -> dict[str, torch.Tensor]:
    found = {"pixel_values": torch.randn(BATCH, 3, 8, 8, generator=draw)}
    if name.endswith("MaskedImageModeling"):
        return {**found, "bool_masked_pos": torch.rand(BATCH, 16, generator=draw) < 0.4}
    return found if name.endswith("Model") else {**found, "labels": torch.arange(BATCH) % labels}


def _sounds(name: str, draw: torch.Generator, labels: int) -> dict[str, torch.Tensor]:
    found = {"input_features": torch.randn(BATCH, 4, 16, generator=draw)}
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=draw)
    if name.endswith("AudioClassification"):
        return {**found, "labels": torch.arange(BATCH) % labels}
    if name.endswith("ConditionalGeneration"):
        return {**found, "labels": ids.masked_fill(torch.arange(LENGTH) > torch.arange(BATCH)[:, None] % 5 + 2, -100)}
    return {**found, "decoder_input_ids": ids}


def criterion(outputs: Any, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's own loss; of a bare body one that looks at each of its outputs, alike for every sample."""
    if outputs.get("loss") is not None:
        return outputs.loss
    hidden = outputs.last_hidden_state
    weight = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(9))
    loss = ((hidden * weight).flatten(1).sum(1) / 4 - 1).square().mean() / 16
    pooled = outputs.get("pooler_output")
    return loss if pooled is None else loss + (pooled - 1).square().mean()

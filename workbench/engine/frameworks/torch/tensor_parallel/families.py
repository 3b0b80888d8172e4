"""How the layers of known models are cut over tensor-parallel ranks. Imports no tensor library.

A plan is patterns of module names -> styles. ``colwise``: a linear layer (or GPT-2's ``Conv1D``) is cut along its
outputs, which stay with the rank. ``rowwise``: it is cut along its inputs, which are the rank's, and the outputs are
added up. ``fused``: as ``colwise``, each of the three parts (query, key, value) by itself. ``gathered``: as
``colwise``, and the outputs are put together. ``vocabulary``: an embedding is cut along its rows; ``features``: along
its columns, which stay with the rank. ``shared``: every rank applies the whole layer to values of its own, and the
gradients are added up. A ``*`` stands for one part of a name between dots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STYLES = ("colwise", "rowwise", "fused", "gathered", "vocabulary", "features", "shared")
#: styles that leave a layer whole where its size cannot be cut evenly, or another layer has the same weights
OPTIONAL = ("gathered", "vocabulary")

Styles = Mapping[str, str]


@dataclass(frozen=True)
class Refused:
    """An option of the model's ``config`` with which ranks would not train as one process does, where it is true, and
    ``unless`` is not."""

    option: str
    unless: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Classes of one family of models, the plan of its layers, and what its modules count per rank.

    Patterns of names are those of the body, without the prefix that it has in a class with a head; one that matches no
    module is of a layer that some models do not have. ``heads``: options of the model's ``config`` that the number of
    ranks has to divide, where they are set. ``counts``: patterns -> attributes that are divided by the number of ranks.
    ``arguments``: patterns -> an argument of the module that holds something of all heads, batch x heads in front.
    """

    title: str
    classes: tuple[str, ...]
    styles: Styles
    heads: tuple[str, ...]
    counts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[Refused, ...] = ()


def _classes(prefix: str, *heads: str) -> tuple[str, ...]:
    return tuple(prefix + head for head in heads)


_LM = "ForCausalLM"
_TEXT = "ForSequenceClassification"
_TOKENS = "ForTokenClassification"
_ANSWERS = "ForQuestionAnswering"
_EVERY = ("Model", _LM, _TEXT, _TOKENS, _ANSWERS)

_ATTENTION: Styles = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
    "embed_tokens": "vocabulary",
    "lm_head": "gathered",
}
_GATED: Styles = {
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
_EXPERTS: Styles = {
    "layers.*.block_sparse_moe.experts.*.w1": "colwise",
    "layers.*.block_sparse_moe.experts.*.w3": "colwise",
    "layers.*.block_sparse_moe.experts.*.w2": "rowwise",
}
_NORMED_HEADS: Styles = {"layers.*.self_attn.q_norm": "shared", "layers.*.self_attn.k_norm": "shared"}
_GROUPED_HEADS = ("num_attention_heads", "num_key_value_heads")


def _bart_like(attentions: tuple[str, ...]) -> Styles:
    """Attention and two linear layers as in OPT and Whisper. ``attentions``: patterns of the attention modules."""
    found = {f"{module}.{name}_proj": "colwise" for module in attentions for name in "qkv"}
    found |= {f"{module}.out_proj": "rowwise" for module in attentions}
    parts = {module.partition(".layers.")[0] for module in attentions}
    for part in sorted(parts):
        found |= {f"{part}.layers.*.fc1": "colwise", f"{part}.layers.*.fc2": "rowwise"}
    return found


def _bert_like(attention: str) -> Styles:
    """Layers as in BERT and ViT, whose attention modules are ``attention``."""
    return {
        **{f"encoder.layer.*.attention.{attention}.{name}": "colwise" for name in ("query", "key", "value")},
        "encoder.layer.*.attention.output.dense": "rowwise",
        "encoder.layer.*.intermediate.dense": "colwise",
        "encoder.layer.*.output.dense": "rowwise",
    }


_FUSED_HEADS: Styles = {
    "h.*.self_attention.query_key_value": "colwise",
    "h.*.self_attention.dense": "rowwise",
    "h.*.mlp.dense_h_to_4h": "colwise",
    "h.*.mlp.dense_4h_to_h": "rowwise",
    "word_embeddings": "vocabulary",
    "lm_head": "gathered",
}
_T5_ATTENTION = "*.block.*.layer.*.SelfAttention"
_T5_CROSS = "decoder.block.*.layer.*.EncDecAttention"
_WHISPER_ATTENTION = (
    "encoder.layers.*.self_attn",
    "decoder.layers.*.self_attn",
    "decoder.layers.*.encoder_attn",
)

FAMILIES = (
    Family(
        title="Llama, Mistral, Qwen2, Gemma",
        classes=(
            *_classes("Llama", *_EVERY),
            *_classes("Mistral", *_EVERY),
            *_classes("Qwen2", *_EVERY),
            *_classes("Gemma", "Model", _LM, _TEXT, _TOKENS),
        ),
        styles={**_ATTENTION, **_GATED},
        heads=_GROUPED_HEADS,
    ),
    Family(
        title="Qwen3",
        classes=_classes("Qwen3", *_EVERY),
        styles={**_ATTENTION, **_GATED, **_NORMED_HEADS},
        heads=_GROUPED_HEADS,
    ),
    Family(
        title="Cohere",
        classes=_classes("Cohere", "Model", _LM),
        styles={**_ATTENTION, **_GATED},
        heads=_GROUPED_HEADS,
        refused=(Refused("use_qk_norm"),),
    ),
    Family(
        title="Mixtral",
        classes=_classes("Mixtral", *_EVERY),
        styles={**_ATTENTION, **_EXPERTS},
        heads=_GROUPED_HEADS,
    ),
    Family(
        title="GPT-2",
        classes=("GPT2LMHeadModel", "GPT2DoubleHeadsModel", *_classes("GPT2", "Model", _TEXT, _TOKENS, _ANSWERS)),
        styles={
            "h.*.attn.c_attn": "fused",
            "h.*.attn.c_proj": "rowwise",
            "h.*.mlp.c_fc": "colwise",
            "h.*.mlp.c_proj": "rowwise",
            "wte": "vocabulary",
            "lm_head": "gathered",
        },
        heads=("n_head",),
        counts={"h.*.attn": ("split_size", "num_heads")},
    ),
    Family(
        title="GPT-J",
        classes=_classes("GPTJ", "Model", _LM, _TEXT, _ANSWERS),
        styles={
            **{f"h.*.attn.{name}_proj": "colwise" for name in "qkv"},
            "h.*.attn.out_proj": "rowwise",
            "h.*.mlp.fc_in": "colwise",
            "h.*.mlp.fc_out": "rowwise",
            "wte": "vocabulary",
            "lm_head": "gathered",
        },
        heads=("n_head",),
        counts={"h.*.attn": ("num_attention_heads",)},
    ),
    Family(
        title="OPT",
        classes=_classes("OPT", "Model", _LM, _TEXT, _ANSWERS),
        styles={
            **_bart_like(("decoder.layers.*.self_attn",)),
            "decoder.embed_tokens": "vocabulary",
            "lm_head": "gathered",
        },
        heads=("num_attention_heads",),
        counts={"decoder.layers.*.self_attn": ("num_heads", "embed_dim")},
    ),
    Family(
        title="BLOOM",
        classes=_classes("Bloom", *_EVERY),
        styles=_FUSED_HEADS,
        heads=("n_head",),
        counts={"h.*.self_attention": ("num_heads",)},
        arguments={"h.*.self_attention": "alibi"},
        refused=(Refused("slow_but_exact"),),
    ),
    Family(
        title="Falcon",
        classes=_classes("Falcon", *_EVERY),
        styles=_FUSED_HEADS,
        heads=("num_attention_heads", "num_kv_heads"),
        counts={"h.*.self_attention": ("num_heads", "num_kv_heads")},
        refused=(Refused("alibi"), Refused("multi_query", unless="new_decoder_architecture")),
    ),
    Family(
        title="BERT",
        classes=(
            *_classes("Bert", "Model", "ForPreTraining", "LMHeadModel", "ForMaskedLM", "ForNextSentencePrediction"),
            *_classes("Bert", "ForMultipleChoice", _TEXT, _TOKENS, _ANSWERS),
        ),
        styles={
            **_bert_like("self"),
            "embeddings.word_embeddings": "vocabulary",
            "cls.predictions.decoder": "gathered",
        },
        heads=("num_attention_heads",),
        counts={"encoder.layer.*.attention.self": ("num_attention_heads", "all_head_size")},
    ),
    Family(
        title="ViT",
        classes=_classes("ViT", "Model", "ForImageClassification", "ForMaskedImageModeling"),
        styles=_bert_like("attention"),
        heads=("num_attention_heads",),
        counts={"encoder.layer.*.attention.attention": ("num_attention_heads", "all_head_size")},
    ),
    Family(
        title="T5",
        classes=_classes("T5", "Model", "ForConditionalGeneration", "EncoderModel", _TOKENS, _ANSWERS),
        styles={
            **{f"{module}.{name}": "colwise" for module in (_T5_ATTENTION, _T5_CROSS) for name in "qkv"},
            **{f"{module}.o": "rowwise" for module in (_T5_ATTENTION, _T5_CROSS)},
            f"{_T5_ATTENTION}.relative_attention_bias": "features",
            **{f"*.block.*.layer.*.DenseReluDense.{name}": "colwise" for name in ("wi", "wi_0", "wi_1")},
            "*.block.*.layer.*.DenseReluDense.wo": "rowwise",
            "lm_head": "gathered",
        },
        heads=("num_heads",),
        counts={module: ("n_heads", "inner_dim") for module in (_T5_ATTENTION, _T5_CROSS)},
    ),
    Family(
        title="Whisper",
        classes=_classes("Whisper", "Model", "ForConditionalGeneration", "ForAudioClassification"),
        styles={**_bart_like(_WHISPER_ATTENTION), "decoder.embed_tokens": "vocabulary", "proj_out": "gathered"},
        heads=("encoder_attention_heads", "decoder_attention_heads"),
        counts={module: ("num_heads", "embed_dim") for module in _WHISPER_ATTENTION},
    ),
)


def family_of(class_name: str) -> Family | None:
    """The family that a model class belongs to; None: its layers are not known."""
    return next((family for family in FAMILIES if class_name in family.classes), None)

"""How the layers of known models are cut over tensor-parallel ranks. Imports no tensor library.

A plan is patterns of module names -> styles. ``colwise``: a linear layer (or GPT-2's ``Conv1D``) is cut along its
outputs, which stay with the rank. ``rowwise``: it is cut along its inputs, which are the rank's, and the outputs are
added up. ``fused``: as ``colwise``, each of the three parts (query, key, value) by itself. ``gathered``: as
``colwise``, and the outputs are put together. ``vocabulary``: an embedding is cut along its rows. A ``*`` stands for
one part of a name between dots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STYLES = ("colwise", "rowwise", "fused", "gathered", "vocabulary")
#: styles that leave a layer whole where its size cannot be cut evenly, or another layer has the same weights
OPTIONAL = ("gathered", "vocabulary")

Styles = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Classes of one family of models, the plan of its layers, and what its modules count per rank.

    ``heads``: options of the model's ``config`` that the number of ranks has to divide. ``counts``: patterns of module
    names -> attributes that are divided by the number of ranks.
    """

    title: str
    classes: tuple[str, ...]
    styles: Styles
    heads: tuple[str, ...]
    counts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_ATTENTION: Styles = {
    "model.layers.*.self_attn.q_proj": "colwise",
    "model.layers.*.self_attn.k_proj": "colwise",
    "model.layers.*.self_attn.v_proj": "colwise",
    "model.layers.*.self_attn.o_proj": "rowwise",
    "model.embed_tokens": "vocabulary",
    "lm_head": "gathered",
}
_GATED: Styles = {
    "model.layers.*.mlp.gate_proj": "colwise",
    "model.layers.*.mlp.up_proj": "colwise",
    "model.layers.*.mlp.down_proj": "rowwise",
}
_EXPERTS: Styles = {
    "model.layers.*.block_sparse_moe.experts.*.w1": "colwise",
    "model.layers.*.block_sparse_moe.experts.*.w3": "colwise",
    "model.layers.*.block_sparse_moe.experts.*.w2": "rowwise",
}
_GROUPED_HEADS = ("num_attention_heads", "num_key_value_heads")

FAMILIES = (
    Family(
        title="Llama, Mistral, Qwen2",
        classes=("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"),
        styles={**_ATTENTION, **_GATED},
        heads=_GROUPED_HEADS,
    ),
    Family(
        title="Mixtral",
        classes=("MixtralForCausalLM",),
        styles={**_ATTENTION, **_EXPERTS},
        heads=_GROUPED_HEADS,
    ),
    Family(
        title="GPT-2",
        classes=("GPT2LMHeadModel",),
        styles={
            "transformer.h.*.attn.c_attn": "fused",
            "transformer.h.*.attn.c_proj": "rowwise",
            "transformer.h.*.mlp.c_fc": "colwise",
            "transformer.h.*.mlp.c_proj": "rowwise",
            "transformer.wte": "vocabulary",
            "lm_head": "gathered",
        },
        heads=("n_head",),
        counts={"transformer.h.*.attn": ("split_size", "num_heads")},
    ),
    Family(
        title="ViT",
        classes=("ViTForImageClassification",),
        styles={
            "vit.encoder.layer.*.attention.attention.query": "colwise",
            "vit.encoder.layer.*.attention.attention.key": "colwise",
            "vit.encoder.layer.*.attention.attention.value": "colwise",
            "vit.encoder.layer.*.attention.output.dense": "rowwise",
            "vit.encoder.layer.*.intermediate.dense": "colwise",
            "vit.encoder.layer.*.output.dense": "rowwise",
        },
        heads=("num_attention_heads",),
        counts={"vit.encoder.layer.*.attention.attention": ("num_attention_heads", "all_head_size")},
    ),
)


def family_of(class_name: str) -> Family | None:
    """The family that a model class belongs to; None: its layers are not known."""
    return next((family for family in FAMILIES if class_name in family.classes), None)

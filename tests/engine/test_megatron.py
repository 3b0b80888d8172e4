"""What Megatron makes of a cell's model, and what it refuses of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

REFUSED = {
    "vit": "it is a ViTForImageClassification",
    "scaled positions": "its rope_scaling is",
    "biased attention": "its attention_bias is True",
    "activation": "its hidden_act is 'mish'",
    "gpt2 dropout": "it has dropouts of 0 and 0.1, and Megatron has one",
    "a class of its own": "it is a LlamaForCausalLM",
    "a hook": "model.layers.1 has a hook",
    "padding": "model.embed_tokens has padding_idx=0 (pad_token_id), a row that gets no gradient",
    "an activation": "model.layers.0.mlp.act_fn is a ReLU, and its configuration makes a SiLU",
    "no norm": "model.norm is a Identity, and its configuration makes a LlamaRMSNorm",
    "a shared weight": "model.layers.1.mlp.up_proj.weight is the same tensor as model.layers.0.mlp.up_proj.weight",
    "gpt2 without a weight": "transformer.ln_f.weight is missing, and its configuration",
    "epsilon": "variance_epsilon of model.norm is 1.0, and its configuration makes 1e-06",
    "scaling": "scaling of model.layers.0.self_attn is 0.05, and its configuration makes",
    "length": "max_norm of model.embed_tokens is 1.0, and its configuration makes None",
    "frequencies": "inv_freq of model.rotary_emb is not what its configuration makes",
    "the body": "a part of the model is called by itself",
    "a gradient hook": "lm_head.weight has a gradient hook",
    "fused": "leave fused=True out",
    "factored": "reads whole weights",
    "tp3": "--tp 3 does not divide the 4 num_attention_heads",
    "pp3": "--pp 3 does not divide the 4 layers",
    "padded on the left": "Pad sequences at their end",
    "positions": "the model is called with position_ids",
    "embeddings": "the model is called with inputs_embeds, no input_ids",
}


@pytest.mark.parametrize("model", ["gpt2", "tied"])
def test_weights_are_those_of_one_process_also_where_the_loss_names_them(
    run_kept: Callable[..., list[Any]], model: str
) -> None:
    """The model is given back with its weights, its optimizer's state and its own forward pass."""
    for found in run_kept(2, "tests.engine.megatron_ranks:trained", model=model, on_ranks_of="megatron"):
        assert found["losses"] == pytest.approx(found["expected"], abs=1e-5)
        assert found["apart"] < 1e-5
        assert found["computes"] == pytest.approx(found["plain"], abs=1e-5)
        assert "is copied while Megatron has its weights" in found["copied"]


def test_what_it_computes_otherwise_is_refused_with_the_reason(run_kept: Callable[..., list[Any]]) -> None:
    found = run_kept(1, "tests.engine.megatron_ranks:refusals", on_ranks_of="megatron")[0]
    assert {name for name, said in found.items() if not said} == {"llama", "gpt2", "loaded"}
    for name, said in REFUSED.items():
        assert said in found[name], name

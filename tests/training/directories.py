"""Small Hugging Face directories, made here: models of two layers with random weights, and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 64


def llama(path: Path, *, dtype: torch.dtype = torch.float32, shards: bool = False, **config: Any) -> Path:
    """A Llama with grouped key-value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": VOCABULARY,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    settings = LlamaConfig(**{**sizes, **config})
    return _saved(LlamaForCausalLM, settings, path, dtype, shards)


def gpt2(path: Path, *, dtype: torch.dtype = torch.float32, shards: bool = False) -> Path:
    """A GPT-2, whose head is its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return _saved(GPT2LMHeadModel, config, path, dtype, shards)


def of_family(family: str, path: Path) -> Path:
    """A model of one of the other families with a causal head, "opt", "bloom" or "falcon"."""
    import transformers

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    own: dict[str, dict[str, Any]] = {
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "dropout": 0.0},
        "bloom": {"n_layer": 2, "n_head": 4},
        "falcon": {"multi_query": False},
    }
    name = {"opt": "OPT", "bloom": "Bloom", "falcon": "Falcon"}[family]
    config = getattr(transformers, f"{name}Config")(**{**sizes, **own[family]})
    return _saved(getattr(transformers, f"{name}ForCausalLM"), config, path, torch.float32, shards=False)


def _saved(kind: Any, config: Any, path: Path, dtype: torch.dtype, shards: bool) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.to(dtype).save_pretrained(path, max_shard_size="20KB" if shards else "5GB")
    return path

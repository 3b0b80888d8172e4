"""Small models and their data, the same on every rank. Nothing here knows of the product."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils._pytree import tree_map

#: how a cell that defines the model "plain" cuts its layers over tensor-parallel ranks
TP_PLAN = {"0": "colwise", "2": "rowwise"}
VOCABULARY = 257  # odd: no tensor-parallel size divides it
BATCH = 8


def model(kind: str) -> torch.nn.Module:
    torch.manual_seed(3)
    if kind == "plain":
        return torch.nn.Sequential(torch.nn.Linear(17, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))
    if kind == "normed":  # what a sample becomes depends on those that it is computed with
        return torch.nn.Sequential(torch.nn.Linear(17, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 3))
    if kind == "cnn":  # convolutions with and without strides and groups, and a norm over channels
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.GroupNorm(2, 8),
            torch.nn.Tanh(),
            torch.nn.Conv2d(8, 12, 3, stride=2, groups=4, bias=False),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(12, 3),
        )
    network = _TRANSFORMERS[kind.partition("-")[0]]()
    if kind.endswith("-eager"):
        network.config._attn_implementation = "eager"
    return network


def _llama(layers: int = 4) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes))


def _tied() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, tie_word_embeddings=True, **sizes))


def _gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=32, **no_dropout)
    )


def _vit() -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    images = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    return ViTForImageClassification(ViTConfig(hidden_dropout_prob=0.0, **sizes, **images))


def _mixtral() -> torch.nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes))


_TRANSFORMERS = {
    "mixtral": _mixtral,
    "llama": _llama,
    "shallow": functools.partial(_llama, layers=2),
    "tied": _tied,
    "gpt2": _gpt2,
    "vit": _vit,
}


def batch(kind: str, step: int) -> Any:
    """The global batch of a step: something to learn, as no two floating point orders agree on noise for long.

    "-masked" has an attention mask of ones, "-padded" one that hides the first tokens, "-ended" the last ones.
    """
    random = torch.Generator().manual_seed(step)
    if kind in ("plain", "normed"):
        inputs = torch.randn(BATCH, 17, generator=random)
        return inputs, (inputs[:, 0] > 0).long()
    if kind == "cnn":
        images = torch.randn(BATCH, 3, 6, 6, generator=random)
        return images, (images.mean((1, 2, 3)) > 0).long()
    if kind == "vit":
        return {"pixel_values": torch.randn(BATCH, 1, 8, 8, generator=random), "labels": torch.arange(BATCH)}
    ids = (torch.randint(0, 256, (BATCH, 1), generator=random) + torch.arange(16) * 3) % 256
    tokens = {"input_ids": ids, "labels": ids}
    if kind.endswith("-masked"):
        return {**tokens, "attention_mask": torch.ones_like(ids)}
    if kind.endswith(("-padded", "-ended")):
        hidden = (torch.arange(16) < 4 if kind.endswith("-padded") else torch.arange(16) > 11).expand_as(ids)
        return {**tokens, "attention_mask": (~hidden).long(), "labels": ids.masked_fill(hidden, -100)}
    return tokens


def part(whole: Any, index: int, count: int) -> Any:
    """The ``index``-th of ``count`` equal parts of a batch."""
    return tree_map(lambda leaf: leaf.chunk(count)[index], whole)


def outputs(network: torch.nn.Module, data: Any) -> Any:
    return network(**data) if isinstance(data, dict) else network(data[0])


def criterion(found: Any, data: Any) -> torch.Tensor:
    return found.loss if hasattr(found, "loss") else torch.nn.functional.cross_entropy(found, data[1])


def optimizer(network: torch.nn.Module, kind: str = "AdamW") -> torch.optim.Optimizer:
    """``kind``: "AdamW" of torch, or an optimizer of Colossal-AI."""
    if kind == "AdamW":
        return torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    from colossalai.nn import optimizer as theirs

    lr = 0.05 if kind == "Lamb" else 3e-3
    return getattr(theirs, kind)(network.parameters(), lr=lr, weight_decay=0.01)

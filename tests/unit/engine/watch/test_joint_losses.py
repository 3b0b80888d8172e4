"""Which losses of the transformers library look at all samples together: told once, and of no other loss."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workbench.core.config import TrainSpec
from workbench.engine.watch.torch.joint_losses import JointLosses

IDS = torch.arange(8).reshape(2, 4)
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def clip() -> tuple[Any, dict[str, Any]]:
    from transformers import CLIPConfig, CLIPModel

    text = {**SMALL, "vocab_size": 16, "eos_token_id": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 8, "patch_size": 4}))
    return model, {"input_ids": IDS, "pixel_values": torch.ones(2, 3, 8, 8), "return_loss": True}


def switch(*, logits: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(vocab_size=16, d_model=8, d_ff=8, d_kv=8, num_layers=2, num_decoder_layers=2,
                                      num_heads=1, num_experts=2, decoder_start_token_id=0, num_sparse_encoder_layers=1,
                                      num_sparse_decoder_layers=1)  # fmt: skip
    return SwitchTransformersForConditionalGeneration(config), {
        "input_ids": IDS, "labels": IDS, "output_router_logits": logits,
    }  # fmt: skip


def bert() -> tuple[Any, dict[str, Any]]:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SMALL, vocab_size=16)), {"input_ids": IDS, "labels": IDS}


def told_of(model: torch.nn.Module, inputs: dict[str, Any], **options: Any) -> list[str]:
    told: list[str] = []
    strategy: Any = SimpleNamespace(tell=lambda name, text: told.append(text))
    observer = JointLosses(TrainSpec.from_options({"ranks": 2, "batch_size": 4, **options}), strategy, model)
    for _ in range(2):
        model(**inputs) if not isinstance(model, torch.nn.Sequential) else model[0](**inputs)
    observer.close()
    model(**inputs) if not isinstance(model, torch.nn.Sequential) else model[0](**inputs)
    assert not any(module._forward_hooks for module in model.modules())
    return told


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (clip, "CLIPModel holds a comparison of samples"),
        (partial(switch, logits=True), "SwitchTransformersForConditionalGeneration holds how evenly a router"),
    ],
)
def test_it_is_told_once(made: Any, text: str) -> None:
    model, inputs = made()
    (said,) = told_of(model, inputs)
    assert text in said
    assert len(told_of(torch.nn.Sequential(model), inputs)) == 1, "inside another model"
    assert told_of(model, inputs, ranks=1) == [], "the batch is whole"
    assert len(told_of(model, inputs, ranks=1, accumulate=2)) == 1


def test_others_are_not_told() -> None:
    for model, inputs in (bert(), switch(logits=False)):
        assert told_of(model, inputs) == []
    model, inputs = clip()
    assert told_of(model, {**inputs, "return_loss": False}) == [], "the cell computes the loss"

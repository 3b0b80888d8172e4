"""Which models of the transformers library tensor and pipeline parallelism split. Imports no tensor library.

Every class here was trained under the plans named and compared step by step with one process. A class, or a setting of
its configuration, that came out otherwise is left out, or refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A setting with which a family is not split rightly: ``setting`` of the configuration is ``values`` (empty: any
    that is set) and the plan has ``axis`` ("tp", "pp", or "" for either). ``instead``: what to do."""

    setting: str
    instead: str
    axis: str = ""
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    ``heads``: what follows the prefix of its classes that both plans split; ``tp_only``: that tp alone splits.
    ``forward``: Colossal-AI's forward pass of the body under a pipeline; "" where its heads have one each. ``body_of``:
    class -> the module that its head calls, where this is not the base model. ``two_stages``: heads with a decoder that
    has to be on one stage. ``needs_mask``: the body reads the attention mask without asking. ``pp_lacks``: entries of a
    batch that a pipeline does not take. ``adapted``: names of the layers whose LoRA adapters both plans train.
    """

    title: str
    prefix: str
    heads: tuple[str, ...]
    tp_only: tuple[str, ...] = ()
    forward: str = ""
    body_of: Mapping[str, str] = field(default_factory=dict)
    two_stages: tuple[str, ...] = ()
    needs_mask: bool = False
    pp_lacks: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def classes(self, axis: str) -> list[str]:
        """Names of the classes that "tp" or "pp" splits."""
        return [self.prefix + head for head in (*self.heads, *(self.tp_only if axis == "tp" else ()))]


#: settings with which no family is split rightly
ANY_FAMILY = (
    Refusal(setting="output_hidden_states", axis="pp", instead="output_hidden_states=False"),
    Refusal(setting="output_attentions", axis="pp", instead="output_attentions=False"),
    Refusal(setting="return_dict", values=(False,), instead="return_dict=True"),
)

_LM = "ForCausalLM"
_TEXT = "ForSequenceClassification"
_TOKENS = "ForTokenClassification"
_ANSWERS = "ForQuestionAnswering"

_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

#: by the name of the package in ``transformers.models``
FAMILIES: dict[str, Family] = {
    "llama": Family(
        title="Llama",
        prefix="Llama",
        heads=("Model", _LM, _TEXT),
        forward="llama:LlamaPipelineForwards.llama_model_forward",
        adapted=_GATED,
    ),
    "mistral": Family(
        title="Mistral",
        prefix="Mistral",
        heads=("Model", _LM, _TEXT),
        forward="mistral:MistralForwards.mistral_model_forward",
        adapted=_GATED,
        pp_lacks=("inputs_embeds",),
    ),
    "qwen2": Family(
        title="Qwen2",
        prefix="Qwen2",
        heads=("Model", _LM, _TEXT),
        forward="qwen2:Qwen2PipelineForwards.qwen2_model_forward",
        adapted=_GATED,
        refusals=(Refusal(setting="use_sliding_window", axis="pp", instead="use_sliding_window=False"),),
    ),
    "mixtral": Family(
        title="Mixtral",
        prefix="Mixtral",
        heads=("Model", _LM),
        tp_only=(_TEXT,),
        forward="mixtral:MixtralPipelineForwards.mixtral_model_forward",
        refusals=(Refusal(setting="output_router_logits", axis="pp", instead="output_router_logits=False"),),
    ),
    "gpt2": Family(
        title="GPT-2",
        prefix="GPT2",
        heads=("Model", "LMHeadModel", "DoubleHeadsModel", _TEXT, _TOKENS, _ANSWERS),
        forward="gpt2:GPT2PipelineForwards.gpt2_model_forward",
        adapted=("c_attn", "c_proj", "c_fc"),
        pp_lacks=("inputs_embeds",),
    ),
    "gptj": Family(
        title="GPT-J",
        prefix="GPTJ",
        heads=("Model", _LM, _TEXT, _ANSWERS),
        forward="gptj:GPTJPipelineForwards.gptj_model_forward",
        adapted=("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"),
    ),
    "opt": Family(
        title="OPT",
        prefix="OPT",
        heads=("Model", _LM, _TEXT, _ANSWERS),
        forward="opt:OPTPipelineForwards.opt_model_forward",
        adapted=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        body_of={"OPTModel": "decoder", "OPTForCausalLM": "model.decoder"},
        needs_mask=True,
        pp_lacks=("inputs_embeds",),
    ),
    "bloom": Family(
        title="BLOOM",
        prefix="Bloom",
        heads=("Model", _LM, _TEXT, _TOKENS, _ANSWERS),
        forward="bloom:BloomPipelineForwards.bloom_model_forward",
        adapted=_FUSED,
        pp_lacks=("inputs_embeds",),
        refusals=(Refusal(setting="slow_but_exact", axis="tp", instead="slow_but_exact=False"),),
    ),
    "falcon": Family(
        title="Falcon",
        prefix="Falcon",
        heads=("Model", _LM, _TEXT, _TOKENS, _ANSWERS),
        forward="falcon:FalconPipelineForwards.falcon_model_forward",
        adapted=_FUSED,
        pp_lacks=("inputs_embeds",),
        refusals=(Refusal(setting="alibi", instead="alibi=False"),),
    ),
    "bert": Family(
        title="BERT",
        prefix="Bert",
        heads=(
            "Model",
            "ForPreTraining",
            "LMHeadModel",
            "ForMaskedLM",
            _TEXT,
            _TOKENS,
            "ForNextSentencePrediction",
            "ForMultipleChoice",
            _ANSWERS,
        ),
        forward="bert:BertPipelineForwards.bert_model_forward",
        refusals=(
            Refusal(
                setting="position_embedding_type",
                values=("relative_key", "relative_key_query"),
                axis="tp",
                instead='position_embedding_type="absolute"',
            ),
        ),
    ),
    "t5": Family(
        title="T5",
        prefix="T5",
        heads=("Model", "ForConditionalGeneration", "EncoderModel", _TOKENS),
        two_stages=("Model", "ForConditionalGeneration"),
    ),
    "whisper": Family(
        title="Whisper",
        prefix="Whisper",
        heads=("Model", "ForConditionalGeneration", "ForAudioClassification"),
        two_stages=("Model", "ForConditionalGeneration"),
        refusals=(Refusal(setting="use_weighted_layer_sum", axis="pp", instead="use_weighted_layer_sum=False"),),
    ),
    "vit": Family(
        title="ViT",
        prefix="ViT",
        heads=("Model", "ForImageClassification", "ForMaskedImageModeling"),
    ),
}


def family_of(model: Any) -> Family | None:
    """The family of a model of the transformers library; None for any other, also for a subclass made elsewhere."""
    return family_of_class(type(model))


def family_of_class(kind: type) -> Family | None:
    """The family that a class of the transformers library belongs to."""
    parts = kind.__module__.split(".")
    return FAMILIES.get(parts[2]) if parts[:2] == ["transformers", "models"] and len(parts) > 2 else None

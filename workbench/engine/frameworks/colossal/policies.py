"""Which models Colossal-AI's hybrid plugin can split, and what is checked of them beforehand."""

from __future__ import annotations

from typing import Any

import torch
from colossalai.shardformer.policies.auto_policy import _POLICY_LIST, _fullname
from colossalai.shardformer.policies.base_policy import Policy

from workbench.core.config import TrainSpec
from workbench.errors import ConfigError

#: families whose split training was compared step by step with one process
TESTED_FAMILIES = ("llama", "gpt2", "vit")


#: classes whose last layer is split over its labels
_SPLIT_CLASSIFIERS = ("LlamaForSequenceClassification", "ViTForImageClassification")


class UnchangedPolicy(Policy):
    """Leaves a model as it is: the hybrid plugin with data parallelism only takes any module."""

    def config_sanity_check(self) -> None:
        """Nothing to check."""

    def preprocess(self) -> torch.nn.Module:
        """The model as it is."""
        return self.model

    def module_policy(self) -> dict[Any, Any]:
        """No module is replaced."""
        return {}

    def postprocess(self) -> torch.nn.Module:
        """The model as it is."""
        return self.model


def compiled_inside(model: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile(module)`` wraps, itself compiled, with the wrapper's options: a framework that
    splits modules has to see its class. Any other module is returned as it is."""
    inner: Any = getattr(model, "_orig_mod", None)
    if inner is None:
        return model
    wrapper: Any = model
    inner._compiled_call_impl = wrapper.dynamo_ctx(inner._call_impl)  # what ``Module.compile`` does
    return inner


def has_policy(model: torch.nn.Module) -> bool:
    """Whether Colossal-AI knows how to split this class of model."""
    return _fullname(model) in _POLICY_LIST


def _known_classes() -> list[str]:
    """Classes of the tested families for which Colossal-AI has a policy."""
    return sorted(name.rpartition(".")[2] for name in _POLICY_LIST if _family(name))


def _family(full_name: str) -> str:
    """The tested family of a class such as ``transformers.models.llama.modeling_llama.LlamaModel``; else ""."""
    return next((part for part in full_name.split(".") if part in TESTED_FAMILIES), "")


def policy_for(model: torch.nn.Module) -> Policy | None:
    """The policy to give to the hybrid plugin; None lets it choose its own for the model's class."""
    return None if has_policy(model) else UnchangedPolicy()


def check_split(model: torch.nn.Module, spec: TrainSpec) -> None:
    """Refuse, with ``ConfigError``, a model that ``--tp`` and ``--pp`` of the spec cannot split."""
    tp, pp = spec.plan.tp, spec.plan.pp
    if tp * pp == 1:
        return
    flag = "--tp" if tp > 1 else "--pp"
    model = getattr(model, "_orig_mod", model)  # of torch.compile(model)
    if not has_policy(model):
        raise ConfigError(
            f"Colossal-AI cannot split a {type(model).__name__} over tp {tp} x pp {pp} ranks: of the tested families "
            f"it splits {', '.join(_known_classes())}. Use --plugin ddp, zero1 or zero2, or --tp 1 --pp 1",
            field=flag,
        )
    family = type(model).__module__.split(".")[-2]
    if family not in TESTED_FAMILIES:
        raise ConfigError(
            f"{type(model).__name__} over tp {tp} x pp {pp} was never compared with one process, and Colossal-AI is "
            f"silently wrong for some models: tested are {', '.join(TESTED_FAMILIES)}. Use --tp 1 --pp 1",
            field=flag,
        )
    config: Any = model.config
    heads = getattr(config, "num_attention_heads", tp)
    for what, count in (
        ("attention heads", heads),
        ("key-value heads", getattr(config, "num_key_value_heads", None) or heads),
        ("intermediate features", getattr(config, "intermediate_size", None) or tp),
        ("labels", config.num_labels if type(model).__name__ in _SPLIT_CLASSIFIERS else tp),
    ):
        if count % tp:
            raise ConfigError(f"--tp {tp} does not divide the {count} {what} of the model", field="--tp")
    layers = getattr(config, "num_hidden_layers", pp)
    if layers % pp:
        raise ConfigError(f"--pp {pp} does not divide the {layers} layers of the model", field="--pp")

"""Which models Colossal-AI's hybrid plugin can split, and what is checked of them beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from colossalai.shardformer.policies.auto_policy import _POLICY_LIST, _fullname, import_policy
from colossalai.shardformer.policies.base_policy import Policy

from workbench.core.config import TrainSpec
from workbench.engine.frameworks.colossal.adapters import check_adapters
from workbench.engine.frameworks.colossal.families import ANY_FAMILY, FAMILIES, Family, family_of, family_of_class
from workbench.engine.frameworks.colossal.pipeline_parallel.schedules import check_chunks
from workbench.engine.frameworks.colossal.sequence_parallel import check_sequences
from workbench.engine.frameworks.colossal.split_policy import SplitPolicy
from workbench.errors import ConfigError

#: sizes in a configuration that tensor parallelism splits, and what they are the number of
_SPLIT_BY_TP = {
    "num_attention_heads": "attention heads",
    "encoder_attention_heads": "attention heads of the encoder",
    "decoder_attention_heads": "attention heads of the decoder",
    "num_key_value_heads": "key-value heads",
    "num_kv_heads": "key-value heads",
    "intermediate_size": "intermediate features",
    "ffn_dim": "intermediate features",
    "d_ff": "intermediate features",
    "n_inner": "intermediate features",
    "encoder_ffn_dim": "intermediate features of the encoder",
    "decoder_ffn_dim": "intermediate features of the decoder",
}


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


def recompute_without_reentry(model: torch.nn.Module) -> None:
    """Let checkpointed layers be recomputed in the same backward pass: a reentrant one takes no keywords, as the stages
    of a pipeline give them, and meets DDP's reducer twice. The gradients are the same."""
    for module in model.modules():
        recompute = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(recompute, partial):
            module._gradient_checkpointing_func = partial(  # type: ignore[assignment]
                recompute.func, *recompute.args, **{**recompute.keywords, "use_reentrant": False}
            )


def policy_for(model: torch.nn.Module) -> Policy:
    """The policy to give to the hybrid plugin for a model that ``check_split`` let through."""
    return SplitPolicy(import_policy(_POLICY_LIST[_fullname(model)])())


def check_split(model: torch.nn.Module, spec: TrainSpec) -> None:
    """Refuse, with ``ConfigError``, a model that ``--tp`` and ``--pp`` of the spec cannot split."""
    plan = spec.plan
    model = getattr(model, "_orig_mod", model)  # of torch.compile(model)
    axes = {axis: count for axis, count in (("tp", plan.tp), ("pp", plan.pp)) if count > 1}
    family = family_of(model)
    for axis, count in axes.items():
        if family is None or type(model).__name__ not in family.classes(axis):
            raise ConfigError(_unknown_class(model, family, axis, count), field=f"--{axis}")
    check_sequences(model, plan)
    if family is not None and axes:
        check_adapters(model, family, axes)
        _check_settings(model, family, axes)
        _check_sizes(model, family, plan.tp, plan.pp)
        check_chunks(model, type(model).__module__.split(".")[2], family.title, plan)


def _unknown_class(model: torch.nn.Module, family: Family | None, axis: str, count: int) -> str:
    name = type(model).__name__
    if hasattr(model, "merge_and_unload"):
        return (
            f"--{axis} {count} cannot split a {name}: define the model without get_peft_model, and lora = the same "
            "LoraConfig, or use --plugin ddp, zero1 or zero2"
        )
    if family is None:
        no_subclass = ", and no subclass of them" if any(map(family_of_class, type(model).__mro__)) else ""
        titles = ", ".join(item.title for item in FAMILIES.values())
        what = f"models of the transformers library's families {titles}{no_subclass}"
    else:
        what = f"of the {family.title} family {', '.join(family.classes(axis))}"
    or_tp = ", or --tp" if axis == "pp" and family is not None and name in family.classes("tp") else ""
    return f"--{axis} {count} cannot split a {name}: it splits {what}. Use --plugin ddp, zero1 or zero2{or_tp}"


def _check_settings(model: Any, family: Family, axes: Mapping[str, int]) -> None:
    for refusal in (*family.refusals, *ANY_FAMILY):
        axis = next((axis for axis in axes if refusal.axis in ("", axis)), "")
        value = getattr(model.config, refusal.setting, None)
        if axis and (value in refusal.values if refusal.values else value):
            raise ConfigError(
                f"--{axis} {axes[axis]} cannot train a {type(model).__name__} with {refusal.setting}={value!r} as one "
                f"process does: set {refusal.instead} in its configuration, or use --plugin ddp, zero1 or zero2",
                field=f"--{axis}",
            )


def _check_sizes(model: Any, family: Family, tp: int, pp: int) -> None:
    config = model.config
    name = type(model).__name__
    for setting, what in _SPLIT_BY_TP.items():
        count = getattr(config, setting, None)
        if isinstance(count, int) and count % tp:
            raise ConfigError(f"--tp {tp} does not divide the {count} {what} of the model", field="--tp")
    if pp > 2 and name in [family.prefix + head for head in family.two_stages]:
        raise ConfigError(
            f"--pp {pp} would spread the decoder of a {name} over several stages, which is not trained as one process "
            "does: use --pp 2",
            field="--pp",
        )
    layers = getattr(config, "num_hidden_layers", pp) + getattr(config, "decoder_layers", 0)
    if layers < pp:
        raise ConfigError(f"--pp {pp} is more than the {layers} layers of the model", field="--pp")

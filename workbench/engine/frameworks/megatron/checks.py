"""What Megatron's GPTModel would train as another model, or cannot train."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.megatron.models import ACTIVATIONS, FAMILIES, Family, part_of
from workbench.engine.frameworks.torch_common.gradient_hooks import check_hooks
from workbench.engine.frameworks.torch_common.optimizer_checks import is_elementwise
from workbench.errors import ConfigError

_OTHERWISE = "Use --framework torch"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def family_of(model: Any) -> Family:
    """The family of models that ``model`` is of. ``ConfigError``: Megatron has none such, or computes it otherwise."""
    kind = type(model)
    family = FAMILIES.get(kind.__name__) if kind.__module__.startswith("transformers.") else None
    reason = f"it is a {kind.__name__}" if family is None else next(_differences(family, model), "")
    if family is None or reason:
        raise ConfigError(
            f"--framework megatron trains {' and '.join(FAMILIES)} of the transformers library as Megatron's GPTModel, "
            f"and not this model: {reason}. {_OTHERWISE}",
            field="model",
        )
    return family


def _differences(family: Family, model: Any) -> Iterator[str]:
    """What Megatron's model would compute otherwise."""
    config = model.config
    for option, value in family.wanted.items():
        if getattr(config, option, value) != value:
            yield f"its {option} is {getattr(config, option)!r}"
    if getattr(config, family.activation) not in ACTIVATIONS:
        yield f"its {family.activation} is {getattr(config, family.activation)!r}"
    for values in family.dropouts(model):
        if len(values) > 1:
            found = " and ".join(f"{each:g}" for each in sorted(values))
            yield f"it has dropouts of {found}, and Megatron has one for all"
    if getattr(model, "is_gradient_checkpointing", False):
        yield "its activations are checkpointed"
    for name, module in model.named_modules():
        if not type(module).__module__.startswith(("transformers.", "torch.nn.")) or "forward" in vars(module):
            yield f"{name or 'the model'} is a {type(module).__name__} of its own"
        if name and any(getattr(module, hooks) for hooks in _HOOKS):
            yield f"{name} has a hook, and Megatron does not call it"
    yield from _changes(model)
    for name, parameter in model.named_parameters():
        if part_of(family, config, name) is None:
            yield f"Megatron has no {name}"
        if parameter.dtype != torch.float32:
            yield f"{name} is {parameter.dtype}, and the plan computes in float32"


def _changes(model: Any) -> Iterator[str]:
    """What of the modules is not as the configuration makes them: Megatron's are made from that alone."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    made = dict(fresh.named_modules())
    for name, module in model.named_modules():
        place = name or "the model"
        other = made.pop(name, None)
        if type(module) is not type(other):
            there = "none" if other is None else f"a {type(other).__name__}"
            yield f"{place} is a {type(module).__name__}, and its configuration makes {there}"
            continue
        values, wanted = _plain(module), _plain(other)
        for key in sorted(values.keys() | wanted.keys()):
            if values.get(key) != wanted.get(key):
                yield (
                    f"{key} of {place} is {values.get(key, 'missing')!r}, and its configuration makes "
                    f"{wanted.get(key, 'none')!r}"
                )
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            yield f"{place} has padding_idx={module.padding_idx} (pad_token_id), a row that gets no gradient"
        frequencies = module._buffers.get("inv_freq")
        if frequencies is not None:
            expected = type(module)(config=copy.deepcopy(model.config))._buffers["inv_freq"]
            if not torch.equal(frequencies.cpu(), expected.cpu()):
                yield f"inv_freq of {place} is not what its configuration makes"
    if made:
        yield f"it has no {next(iter(made))}, which its configuration makes"
    shared, wanted_shared = _shared(model), _shared(fresh)
    for name in sorted(shared.keys() | wanted_shared.keys()):
        if shared.get(name) != wanted_shared.get(name):
            yield f"{name} is {_share_in_words(shared.get(name), name)}, and its configuration makes it otherwise"


def _shared(model: Any) -> dict[str, str]:
    """Name of each weight -> the first name of the same tensor; of the output layer, which may share the embedding's
    whatever the configuration says, its own."""
    first: dict[int, str] = {}
    output = model.get_output_embeddings()
    own = set() if output is None else {id(output.weight)}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[name] = name if id(parameter) in own else first.setdefault(id(parameter), name)
    return found


def _share_in_words(first: str | None, name: str) -> str:
    return "missing" if first is None else "a weight of its own" if first == name else f"the same tensor as {first}"


def _plain(module: torch.nn.Module) -> dict[str, Any]:
    """Attributes that say how a module computes. Dropout is read from the modules (``Family.dropouts``)."""
    return {
        key: getattr(value, "__func__", value)
        for key, value in vars(module).items()
        if not key.startswith("_")
        and key not in ("training", "p", "gradient_checkpointing", "name_or_path")
        and "dropout" not in key
        and "pdrop" not in key
        and (value is None or callable(value) or isinstance(value, int | float | str | tuple | torch.dtype))
    }


def _check_split(family: Family, model: Any, tp: int) -> None:
    if tp == 1:
        return
    settings = family.settings(model.config)
    names = ("num_attention_heads", "num_query_groups", "ffn_hidden_size")
    for name in [each for each in names if settings.get(each, tp) % tp]:
        raise ConfigError(
            f"--tp {tp} does not divide the {settings[name]} {name} of the model: choose a tensor-parallel size that "
            "does, or leave it out",
            field="--tp",
        )


def check(spec: TrainSpec, workload: Workload) -> None:
    """Refuse it with ``ConfigError``."""
    model, optimizer = workload.model, workload.optimizer
    _check_split(family_of(model), model, spec.plan.tp)
    if workload.beside:
        raise ConfigError(
            f"the optimizer has parameters of {', '.join(workload.beside)}, which is not part of the model that "
            f"Megatron computes. {_OTHERWISE}",
            field="optimizer",
        )
    check_hooks(spec, model, optimizer, has_copies=True)
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks:
            raise ConfigError(
                f"{users_name(name)} has a gradient hook, which --framework megatron cannot call with the gradient in "
                f"the weight's shape. {_OTHERWISE}",
                field="model",
            )
    kind = type(optimizer).__name__
    if not is_elementwise(optimizer, lambda weight: weight.flatten()[: weight.numel() // 2]):
        raise ConfigError(
            f"{kind} reads whole weights, which under --framework megatron have another shape: the update would differ "
            f"from that of one process. {_OTHERWISE}",
            field="optimizer",
        )
    if any(group.get("fused") for group in optimizer.param_groups):
        raise ConfigError(
            f"a fused {kind} needs weights that are contiguous, which under --framework megatron are parts of others: "
            "leave fused=True out",
            field="optimizer",
        )

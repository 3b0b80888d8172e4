"""Which modules of a model are cut over tensor-parallel ranks, checked before anything is cut."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.engine.base.names import users_name
from workbench.engine.frameworks.torch.tensor_parallel.families import (
    FAMILIES,
    OPTIONAL,
    STYLES,
    Family,
    family_of,
)
from workbench.engine.pretrained.lora import adapted_layers, drops_out
from workbench.errors import ConfigError, suggest

_FIELD = "tp_plan"


@dataclass(frozen=True)
class TensorPlan:
    """``modules``: qualified name -> (module, style). ``counts``: (module, attribute) to be divided by the ranks.
    ``arguments``: (module, argument of all heads of which a rank needs its own)."""

    modules: Mapping[str, tuple[torch.nn.Module, str]] = field(default_factory=dict)
    counts: tuple[tuple[torch.nn.Module, str], ...] = ()
    arguments: tuple[tuple[torch.nn.Module, str], ...] = ()

    def of(self, modules: Collection[torch.nn.Module]) -> TensorPlan:
        """The part of the plan that is about ``modules``."""
        known = {id(module) for module in modules}
        return TensorPlan(
            {name: found for name, found in self.modules.items() if id(found[0]) in known},
            tuple(found for found in self.counts if id(found[0]) in known),
            tuple(found for found in self.arguments if id(found[0]) in known),
        )


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether a module is transformers' ``Conv1D``: a linear layer whose weight is [inputs, outputs]."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module computes what ``torch.nn.Linear`` does."""
    kind = type(module)
    is_falcon = kind.__name__ == "FalconLinear" and kind.__module__ == "transformers.models.falcon.modeling_falcon"
    return kind is torch.nn.Linear or is_falcon or is_conv1d(module)


def plan_of(model: torch.nn.Module, tp: int, own: Any = None) -> TensorPlan:
    """How ``model`` is cut over ``tp`` ranks: by ``own``, the ``tp_plan`` of a cell, or by the plan of its family.

    ``ConfigError`` for a model that is not known and has no plan, for LoRA adapters with dropout, for a plan that names
    no module or another style, and for sizes that cannot be cut evenly.
    """
    if drops_out(adapted_layers(model).values()):
        raise ConfigError(
            f"--tp {tp} drops other elements than one process would in LoRA adapters: set lora_dropout=0, or leave out "
            "--tp",
            field="lora",
        )
    if own is not None:
        return _checked(model, own, tp)
    family = family_of(type(model).__name__)
    if family is None:
        known = "; ".join(family.title for family in FAMILIES)
        raise ConfigError(
            f"--tp {tp}: how to cut {type(model).__name__} over ranks is not known (known: {known}): define it in the "
            'cell, tp_plan = {"layers.*.attn.q": "colwise", "layers.*.attn.out": "rowwise"}, or leave out --tp',
            field="--tp",
        )
    return _of_family(model, family, tp)


def _of_family(model: Any, family: Family, tp: int) -> TensorPlan:
    for refused in family.refused:
        option, unless = refused.option, refused.unless
        value = getattr(model.config, option)
        if value and not (unless and getattr(model.config, unless)):
            raise ConfigError(
                f"--tp {tp} cannot cut a {type(model).__name__} with {option}={value!r} so that it trains as one "
                f"process does: set {option}=False in its configuration, or leave out --tp",
                field="--tp",
            )
    for name in family.heads:
        heads = getattr(model.config, name)
        if heads is not None and heads % tp:
            raise ConfigError(f"--tp {tp} does not divide {name} = {heads}: use a divisor of {heads}", field="--tp")
    prefix = f"{model.base_model_prefix}."
    found = _checked(model, family.styles, tp, prefix)
    counts = [
        (module, attribute)
        for pattern, attributes in family.counts.items()
        for _, module in _matching(model, pattern, prefix)
        for attribute in attributes
    ]
    arguments = [
        (module, argument)
        for pattern, argument in family.arguments.items()
        for _, module in _matching(model, pattern, prefix)
    ]
    return TensorPlan(found.modules, tuple(counts), tuple(arguments))


def _checked(model: torch.nn.Module, styles: Any, tp: int, prefix: str | None = None) -> TensorPlan:
    """``prefix``: of the body of a known model, whose patterns may match no module; None: the cell's own plan."""
    if not isinstance(styles, Mapping) or not styles:
        raise ConfigError(
            f"tp_plan is a {type(styles).__name__}: it must be a dict of patterns of module names -> styles "
            f"({', '.join(STYLES)})",
            field=_FIELD,
        )
    shared = _shared(model)
    modules: dict[str, tuple[torch.nn.Module, str]] = {}
    for pattern, style in styles.items():
        if style not in STYLES:
            raise ConfigError(f"tp_plan[{pattern!r}] = {style!r}: {suggest(str(style), STYLES)}", field=_FIELD)
        matching = list(_matching(model, pattern, prefix or ""))
        if not matching and prefix is None:
            names = [users_name(name) for name, _ in model.named_modules() if name]
            raise ConfigError(f"tp_plan[{pattern!r}] matches no module: {suggest(pattern, names)}", field=_FIELD)
        for name, module in matching:
            parts = _parts(name, module, style)
            reason = next(filter(None, (_why_not(part, style, tp, shared) for part in parts.values())), "")
            if not reason:
                modules |= {part: (found, style) for part, found in parts.items()}
            elif style not in OPTIONAL:
                raise ConfigError(f"{name} cannot be cut {style} over --tp {tp}: {reason}", field=_FIELD)
    return TensorPlan(modules)


def _parts(name: str, module: Any, style: str) -> dict[str, torch.nn.Module]:
    """What is cut of a layer: the layer itself; of one with LoRA adapters the layer that they are added to, and the one
    of their two matrices that has its inputs (rowwise) or its outputs."""
    if not hasattr(module, "lora_A") or not hasattr(module, "base_layer"):
        return {name: module}
    cut = "lora_A" if style == "rowwise" else "lora_B"
    matrices = {f"{name}.{cut}.{adapter}": matrix for adapter, matrix in getattr(module, cut).items()}
    return {f"{name}.base_layer": module.base_layer, **matrices}


def _matching(model: torch.nn.Module, pattern: str, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    for name, module in model.named_modules():
        if expression.fullmatch(users_name(name).removeprefix(prefix)):
            yield users_name(name), module


def _shared(model: torch.nn.Module) -> set[int]:
    """Ids of the parameters that several modules have."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _why_not(module: torch.nn.Module, style: str, tp: int, shared: set[int]) -> str:
    """Why a module cannot be cut in a style; "" when it can."""
    if style == "shared":
        return ""
    if style in ("vocabulary", "features"):
        if type(module) is not torch.nn.Embedding or module.max_norm is not None:
            return f"it is a {type(module).__name__}, not a torch.nn.Embedding without max_norm"
        size = module.num_embeddings if style == "vocabulary" else module.embedding_dim
        return _why_not_divided(module, size, tp, shared)
    if not is_linear(module):
        return f"it is a {type(module).__name__}, not a torch.nn.Linear or a Conv1D of transformers"
    inputs, outputs = module.weight.shape if is_conv1d(module) else module.weight.shape[::-1]  # type: ignore[misc,union-attr,index]
    if style == "fused" and outputs % 3:
        return f"its {outputs} outputs are not three equal parts"
    size = inputs if style == "rowwise" else outputs // 3 if style == "fused" else outputs
    return _why_not_divided(module, size, tp, shared)


def _why_not_divided(module: torch.nn.Module, size: int, tp: int, shared: set[int]) -> str:
    if size % tp:
        return f"{tp} does not divide {size}"
    if any(id(parameter) in shared for parameter in module.parameters()):
        return "another module has the same weights"
    return ""

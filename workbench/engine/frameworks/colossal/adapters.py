"""LoRA adapters in layers that tensor parallelism splits.

An adapted layer computes ``base(x) + scaling * B(A(x))``. Where ``base`` is split by columns, the rows of B are split
alike: its input gradient is summed over the ranks as any column-split layer's is, so A, which every rank holds, has the
whole gradient. Where ``base`` is split by rows, the columns of A are, its outputs are summed, and every rank holds B.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from colossalai.shardformer.layer import FusedLinear1D_Col, Linear1D_Col, Linear1D_Row
from colossalai.shardformer.layer.qkv_fused_linear import GPT2FusedLinearConv1D_Col, GPT2FusedLinearConv1D_Row
from colossalai.shardformer.layer.utils import SeqParallelUtils

from workbench.engine.frameworks.colossal.families import FAMILIES, Family
from workbench.engine.pretrained.lora import adapted_layers, drops_out
from workbench.errors import ConfigError


def _split(
    upstream: Any, adapter: str, part_like: Any, module: Any, process_group: Any, *args: Any, **kwargs: Any
) -> torch.nn.Module:
    """``module`` split by the layer ``upstream``, and the one of its two ``adapter`` matrices that is split with it by
    the layer ``part_like``: in the same parts, where the outputs of several layers are in one weight. Where ranks share
    the positions of a sequence, each computes the other matrix for its own: the gradients of it are added up."""
    if not hasattr(module, "lora_A"):
        return upstream.from_native_module(module, process_group, *args, **kwargs)
    module.base_layer = upstream.from_native_module(module.base_layer, process_group, *args, **kwargs)
    own = {name: kwargs[name] for name in ("split_sizes", "seq_parallel_mode") if kwargs.get(name) is not None}
    parts, whole = getattr(module, adapter), getattr(module, "lora_A" if adapter == "lora_B" else "lora_B")
    for name, part in list(parts.items()):
        parts[name] = part_like.from_native_module(part, process_group, **own)
        if "seq_parallel_mode" in own:
            SeqParallelUtils.marked_as_sp_partial_derived_param(whole[name].weight)
    return module


def _with_adapter(upstream: Any, adapter: str, part_like: Any) -> Any:
    """``upstream``, a layer that splits others, for those that may have adapters: see ``_split``."""
    return type(
        f"{upstream.__name__}WithAdapter",
        (upstream,),
        {"from_native_module": staticmethod(partial(_split, upstream, adapter, part_like))},
    )


#: upstream's split layer -> the one that also takes an adapted layer
AROUND_ADAPTERS: dict[Any, Any] = {
    Linear1D_Col: _with_adapter(Linear1D_Col, "lora_B", Linear1D_Col),
    Linear1D_Row: _with_adapter(Linear1D_Row, "lora_A", Linear1D_Row),
    # whose columns, those of several layers, are in one weight, as GPT-2's
    GPT2FusedLinearConv1D_Col: _with_adapter(GPT2FusedLinearConv1D_Col, "lora_B", FusedLinear1D_Col),
    GPT2FusedLinearConv1D_Row: _with_adapter(GPT2FusedLinearConv1D_Row, "lora_A", Linear1D_Row),
}


def check_adapters(model: torch.nn.Module, family: Family, axes: Mapping[str, int]) -> None:
    """Refuse, with ``ConfigError``, adapters that the axes ("tp", "pp" -> size) do not train as one process does."""
    layers = adapted_layers(model)
    if not layers:
        return
    axis, count = next(iter(axes.items()))
    flag = f"--{axis} {count}"
    if not family.adapted:
        known = ", ".join(each.title for each in FAMILIES.values() if each.adapted)
        raise ConfigError(
            f"{flag} cannot train LoRA adapters of a {family.title} model; it can for {known}: use "
            "--plugin ddp, zero1 or zero2",
            field=f"--{axis}",
        )
    others = sorted({name.rpartition(".")[2] for name in layers} - set(family.adapted))
    if others:
        raise ConfigError(
            f"{flag} cannot train LoRA adapters of {', '.join(others)}; target_modules may be "
            f"{', '.join(family.adapted)}: leave others out, or use --plugin ddp, zero1 or zero2",
            field="lora",
        )
    if drops_out(layers.values()):
        raise ConfigError(
            f"{flag} drops other elements than one process would in LoRA adapters: set lora_dropout=0, or use --plugin "
            "ddp, zero1 or zero2",
            field="lora",
        )

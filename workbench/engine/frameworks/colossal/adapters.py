"""LoRA adapters in layers that tensor parallelism splits.

An adapted layer computes ``base(x) + scaling * B(A(x))``. Where ``base`` is split by columns, the rows of B are split
alike: its input gradient is summed over the ranks as any column-split layer's is, so A, which every rank holds, has the
whole gradient. Where ``base`` is split by rows, the columns of A are, its outputs are summed, and every rank holds B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from colossalai.shardformer.layer import Linear1D_Col, Linear1D_Row

from workbench.engine.frameworks.colossal.families import Family
from workbench.engine.pretrained.lora import adapted_layers
from workbench.errors import ConfigError

#: families whose adapted layers were compared with one process, and those layers
_FAMILIES = ("Llama", "Mistral", "Qwen2")
_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _split(upstream: Any, adapter: str, module: Any, process_group: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """``module`` split by the layer ``upstream``, and the one of its two ``adapter`` matrices that is split with it."""
    if not hasattr(module, "lora_A"):
        return upstream.from_native_module(module, process_group, *args, **kwargs)
    module.base_layer = upstream.from_native_module(module.base_layer, process_group, *args, **kwargs)
    parts = getattr(module, adapter)
    for name, part in list(parts.items()):
        parts[name] = upstream.from_native_module(part, process_group)
    return module


class ColumnsWithAdapter(Linear1D_Col):
    """Splits a linear layer by columns, with its adapters if it has some."""

    @staticmethod
    def from_native_module(module: torch.nn.Module, process_group: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """As upstream's."""
        return _split(Linear1D_Col, "lora_B", module, process_group, *args, **kwargs)


class RowsWithAdapter(Linear1D_Row):
    """Splits a linear layer by rows, with its adapters if it has some."""

    @staticmethod
    def from_native_module(module: torch.nn.Module, process_group: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """As upstream's."""
        return _split(Linear1D_Row, "lora_A", module, process_group, *args, **kwargs)


#: upstream's split layer -> the one that also takes an adapted layer
AROUND_ADAPTERS: dict[Any, Any] = {Linear1D_Col: ColumnsWithAdapter, Linear1D_Row: RowsWithAdapter}


def check_adapters(model: torch.nn.Module, family: Family, axes: Mapping[str, int]) -> None:
    """Refuse, with ``ConfigError``, adapters that the axes ("tp", "pp" -> size) do not train as one process does."""
    layers = adapted_layers(model)
    if not layers:
        return
    axis, count = next(iter(axes.items()))
    flag = f"--{axis} {count}"
    if family.title not in _FAMILIES:
        raise ConfigError(
            f"{flag} cannot train LoRA adapters of a {family.title} model; it can for {', '.join(_FAMILIES)}: use "
            "--plugin ddp, zero1 or zero2",
            field=f"--{axis}",
        )
    others = sorted({name.rpartition(".")[2] for name in layers} - set(_LAYERS))
    if others:
        raise ConfigError(
            f"{flag} cannot train LoRA adapters of {', '.join(others)}; target_modules may be {', '.join(_LAYERS)}: "
            "leave others out, or use --plugin ddp, zero1 or zero2",
            field="lora",
        )
    if any(module.p for layer in layers.values() for module in layer.lora_dropout.values() if hasattr(module, "p")):
        raise ConfigError(
            f"{flag} drops other elements than one process would in LoRA adapters: set lora_dropout=0, or use --plugin "
            "ddp, zero1 or zero2",
            field="lora",
        )

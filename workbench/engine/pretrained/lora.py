"""LoRA adapters of the peft library in a model that keeps its class, so that plans that split it know it.

LoRA: Hu et al. 2021, arXiv 2106.09685. The layers are peft's own.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ConfigError

ADAPTER = "default"


def add_adapters(model: torch.nn.Module, lora: Any) -> torch.nn.Module:
    """Put adapters into ``model``, in place; they alone require a gradient from then on. Returns ``model``.

    ``lora``: a ``peft.LoraConfig``, or its arguments as a mapping, such as ``{"r": 8, "lora_alpha": 16}``. Raises
    ``ConfigError`` for anything else, for arguments that peft refuses, and for a model that has adapters.
    """
    peft = import_peft()
    if has_adapters(model):
        raise ConfigError(
            "lora: the model already has adapters from get_peft_model in the cell: remove them, or leave out lora",
            field="lora",
        )
    config = _config(peft, lora)
    for option in ("modules_to_save", "use_dora", "layer_replication"):
        if getattr(config, option, None):
            raise ConfigError(
                f"lora: {option} cannot be set with lora = ...: leave it out, or use get_peft_model(model, config) in "
                "the cell, under ddp, zero1 or zero2",
                field="lora",
            )
    try:
        peft.inject_adapter_in_model(config, model, ADAPTER)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"lora: {error}", field="lora") from error
    return model


def import_peft() -> Any:
    """The peft library. ``ConfigError`` when it is not installed."""
    # at the first adapter peft imports it, and on some processors it says that it lacks kernels for four bits
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise ConfigError(f"lora needs the peft library: pip install peft ({error})", field="lora") from error
    return peft


def _config(peft: Any, lora: Any) -> Any:
    if isinstance(lora, peft.LoraConfig):
        return copy.deepcopy(lora)
    if not isinstance(lora, Mapping):
        raise ConfigError(
            f'lora is a {type(lora).__name__}: give a peft.LoraConfig, or its arguments as in {{"r": 8, "lora_alpha": '
            "16}",
            field="lora",
        )
    try:
        return peft.LoraConfig(**lora)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"lora: peft.LoraConfig refuses {dict(lora)!r}: {error}", field="lora") from error


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether ``model`` has adapters of the peft library, by ``lora`` or by the cell's own ``get_peft_model``."""
    return bool(getattr(model, "peft_config", None))


def adapted_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The layers that have LoRA adapters, by qualified name."""
    if not has_adapters(model):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def drops_out(layers: Iterable[Any]) -> bool:
    """Whether adapters of ``layers`` have dropout."""
    return any(module.p for layer in layers for module in layer.lora_dropout.values() if hasattr(module, "p"))


def merged(model: Any) -> Any:
    """``model`` with its adapters added to the weights and taken out, in place: a model of its own class."""
    if hasattr(model, "merge_and_unload"):  # the cell's own get_peft_model
        return model.merge_and_unload()
    for name, layer in adapted_layers(model).items():
        layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    model.requires_grad_(True)
    return model


def save_adapter(model: Any, directory: Path) -> None:
    """Write the adapters alone, as ``peft.PeftModel.from_pretrained(base, directory)`` reads them.

    Raises ``ConfigError`` for a model without adapters.
    """
    if not has_adapters(model):
        raise ConfigError("merge=False writes adapters, and this model has none: leave it out", field="merge")
    peft = import_peft()
    if isinstance(model, peft.PeftModel):
        model.save_pretrained(directory)
        return
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = peft.get_peft_model_state_dict(model, adapter_name=ADAPTER)
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in weights.items()}
    save_file(named, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path = config.base_model_name_or_path or getattr(model, "name_or_path", None)
    config.inference_mode = True
    config.save_pretrained(directory)

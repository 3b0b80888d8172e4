"""Optimizers of Colossal-AI: which of them train as one process does, and under which plugins."""

from __future__ import annotations

from typing import Any

from colossalai.nn.optimizer import optim2DistOptim

from workbench.errors import ConfigError

#: whose form for several ranks was compared with one process
_RIGHT = ("Lamb",)


def is_distributed(optimizer: Any) -> bool:
    """Whether Colossal-AI replaces the optimizer by one that knows of the other ranks' parts."""
    return type(optimizer) in optim2DistOptim


def check_distributed(optimizer: Any, plugin: str) -> None:
    """Refuse, with ``ConfigError``, an optimizer whose form for several ranks, which all plugins but ddp put in its
    place, updates otherwise than it does itself."""
    name = type(optimizer).__name__
    if is_distributed(optimizer) and plugin != "ddp" and name not in _RIGHT:
        raise ConfigError(
            f"under --plugin {plugin} Colossal-AI puts {optim2DistOptim[type(optimizer)].__name__} in the place of "
            f"{name}, which does not train as {name} in one process does (with CAME the loss was off by 0.4 after 5 "
            "steps): use --plugin ddp, or Lamb, HybridAdam or an optimizer of torch",
            field="optimizer",
        )

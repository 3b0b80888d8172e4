"""The random generators of a rank: torch, its GPU, Python, NumPy, and those that Colossal-AI keeps in modules."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from workbench.engine.plain_state import from_plain, to_plain


def tensors(randomizers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """States that are bytes: uint8 vectors by name."""
    found = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    for name, randomizer in randomizers.items():
        found[f"{name}/device"] = randomizer.device_rng_state
        found[f"{name}/cpu"] = randomizer.cpu_rng_state
    return found


def plain() -> dict[str, Any]:
    """States that are numbers."""
    return {"python": to_plain(random.getstate()), "numpy": to_plain(np.random.get_state())}


def restore(states: Mapping[str, torch.Tensor], numbers: Mapping[str, Any], randomizers: Mapping[str, Any]) -> None:
    """Set every generator that there is a state for."""
    for name, randomizer in randomizers.items():
        if f"{name}/device" in states:
            randomizer.device_rng_state = states[f"{name}/device"]
            randomizer.cpu_rng_state = states[f"{name}/cpu"]
    random.setstate(from_plain(numbers["python"]))
    np.random.set_state(from_plain(numbers["numpy"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    torch.set_rng_state(states["torch"])

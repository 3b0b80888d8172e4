"""What Colossal-AI keeps in a model and beside it: shards of parameters, random generators, the fp16 loss scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from colossalai.tensor.d_tensor.api import is_customized_distributed_tensor, is_distributed_tensor


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether the tensor-parallel ranks hold different parts of a parameter."""
    # Upstream's own norm looks at the first only and so counts fused layers (GPT-2's c_attn, c_fc) half.
    return is_distributed_tensor(parameter) or is_customized_distributed_tensor(parameter)


@dataclass(frozen=True, slots=True)
class RandomizerState:
    """A ``Randomizer`` of Colossal-AI (dropout under tensor parallelism) as a ``ModuleGenerator``."""

    randomizer: Any

    def states(self) -> dict[str, torch.Tensor]:
        """Its two states; each draw puts new tensors there, so no copy is needed."""
        return {"device": self.randomizer.device_rng_state, "cpu": self.randomizer.cpu_rng_state}

    def reseed(self, offset: int) -> None:
        """Begin anew with the seed that it has, plus ``offset``."""
        self.restore({name: _reseeded(state, offset) for name, state in self.states().items()})

    def restore(self, states: Mapping[str, torch.Tensor]) -> None:
        """Undo ``states``."""
        self.randomizer.device_rng_state = states["device"]
        self.randomizer.cpu_rng_state = states["cpu"]


def _reseeded(state: torch.Tensor, offset: int) -> torch.Tensor:
    """The state of a generator that begins anew, ``state`` being one of a generator on the rank's device or host.

    Their lengths differ: only a CUDA generator's state is as short as a seed and an offset.
    """
    generator = torch.Generator("cuda" if state.numel() <= 16 else "cpu")
    generator.set_state(state)
    generator.manual_seed(generator.initial_seed() + offset)
    return generator.get_state()


def generators_of(model: torch.nn.Module) -> dict[str, RandomizerState]:
    """The random generators inside modules, by module and attribute."""
    return {
        f"{module_name}.{name}": RandomizerState(value)
        for module_name, module in model.named_modules()
        for name, value in vars(module).items()
        if hasattr(value, "device_rng_state")
    }


@dataclass(frozen=True, slots=True)
class ScalerState:
    """Colossal-AI's fp16 loss scaler as a ``LossScaler``."""

    scaler: Any

    def state_dict(self) -> dict[str, Any]:
        """The scale and the counters that change it, as plain numbers."""
        names = ("_growth_step", "_hysteresis_step")
        return {"_scale": self.scaler.scale.item(), **{name: getattr(self.scaler, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo ``state_dict``."""
        self.scaler._scale.fill_(state["_scale"])
        self.scaler._growth_step = state["_growth_step"]
        self.scaler._hysteresis_step = state["_hysteresis_step"]

"""What an optimizer keeps for a parameter, found by letting it update tiny ones."""

from __future__ import annotations

from typing import Any

import torch

from workbench.engine.frameworks.torch_common.optimizer_state import LENGTHS, tensors_in, updated_once
from workbench.planner.model import StateTensor, state_key


def states_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, tuple[StateTensor, ...]], str]:
    """``ModelDescription.states``, and why some are missing ("": none is).

    Each group updates parameters of each number of dims and type that it has, and flat slices of them in fp32, with a
    gradient of ones. The optimizer itself is not changed.
    """
    found: dict[str, tuple[StateTensor, ...]] = {}
    for number, group in enumerate(optimizer.param_groups):
        kinds = {(parameter.dim(), parameter.dtype) for parameter in group["params"]}
        kinds |= {(dims, torch.float32) for dims, _ in kinds} | {(1, dtype) for _, dtype in kinds}
        kinds |= {(1, torch.float32)} | {(dims, torch.bfloat16) for dims, _ in set(kinds)}
        for dims, dtype in kinds:
            try:
                kept = _state_of_one(optimizer, group, dims, dtype)
            except Exception as error:  # whatever a foreign optimizer raises
                if dtype is torch.float32 and dims in {parameter.dim() for parameter in group["params"]}:
                    return found, f"{type(optimizer).__name__} could not be tried: {type(error).__name__}: {error}"
                continue
            found[state_key(number, dims, torch.empty(0, dtype=dtype).element_size())] = kept
    return found, ""


def _state_of_one(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], dims: int, dtype: torch.dtype
) -> tuple[StateTensor, ...]:
    state = updated_once(optimizer, group, dims, dtype)
    return tuple(_symbolic(tensor) for tensor in tensors_in(state.values()))


def _symbolic(tensor: torch.Tensor) -> StateTensor:
    """A tensor whose lengths that are dims of the parameter are named."""
    dims = tuple(LENGTHS.index(length) for length in tensor.shape if length in LENGTHS)
    rest = [length for length in tensor.shape if length not in LENGTHS]
    elements = 1
    for length in rest:
        elements *= length
    return StateTensor(itemsize=tensor.element_size(), elements=elements, dims=dims)

"""What a rank has of each parameter under ZeRO 1 and 2: a flat part of its fp32 copy, of its gradient and its moments.

DeepSpeed joins the parameters of a group to one flat tensor and cuts that into equal parts, one a rank: a rank has all
of some parameters, a part of others, and nothing of the rest (https://arxiv.org/abs/1910.02054). It gives the optimizer
the part as one weight, which is then updated as a whole. Here the optimizer is given the pieces that the part consists
of, so that a parameter without a gradient, or one that is frozen, is left alone as in one process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workbench.engine.frameworks.torch_common.optimizer_state import cut_state


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A rank's piece of a parameter: ``numel`` elements from ``first`` of the flattened parameter, which are those from
    ``start`` of the part of group ``group``. ``weight``: what the optimizer updates, a view of the part in fp32."""

    first: int
    numel: int
    start: int
    group: int
    weight: torch.nn.Parameter

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The elements in a tensor that is shaped like the part; a view."""
        return flat.view(-1).narrow(0, self.start, self.numel)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The elements of a tensor that is shaped like the parameter."""
        return whole.reshape(-1)[self.first : self.first + self.numel]

    def master_of(self, whole: torch.Tensor) -> torch.Tensor:
        """``cut``, in the type of ``weight``."""
        return self.cut(whole).to(self.weight.dtype)


class Partitions:
    """The pieces of this rank, which ``stepped``, the user's optimizer, updates from now on. ``zero``: the
    ``DeepSpeedZeroOptimizer`` of stage 1 or 2 around it."""

    def __init__(self, zero: Any, stepped: torch.optim.Optimizer) -> None:
        self._zero = zero
        self._found: dict[int, Fragment] = {}
        for group, parameters in enumerate(zero.bit16_groups):
            part = zero.single_partition_of_fp32_groups[group].detach()
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                    weight = torch.nn.Parameter(part.narrow(0, flat.start, flat.numel))
                    self._found[id(parameter)] = Fragment(own.start, own.numel, flat.start, group, weight)
            stepped.param_groups[group]["params"] = [each.weight for each in self._of(group)]
        self._update = zero._optimizer_step
        zero._optimizer_step = self._update_group
        #: ids of the parameters that the next update leaves as they are
        self.left_alone: Collection[int] = frozenset()

    def _of(self, group: int) -> list[Fragment]:
        return [each for each in self._found.values() if each.group == group]

    def fragment(self, parameter: torch.Tensor) -> Fragment | None:
        """What this rank has of a parameter; None where that is nothing."""
        return self._found.get(id(parameter))

    def gradient(self, parameter: Any) -> torch.Tensor | None:
        """This rank's piece of the reduced gradient, a view; None where it has none of it."""
        found = self.fragment(parameter)
        if found is None:
            return None
        if self._zero.cpu_offload:
            return found.of(self._zero.single_partition_of_fp32_groups[found.group].grad)
        pieces = self._zero.averaged_gradients[found.group]
        return pieces[parameter._index_in_param_group].view(-1) if pieces is not None else None

    def tell_norm(self, parameter: torch.Tensor) -> None:
        """A piece of the gradient was changed in place, of which DeepSpeed has the norm already (offload)."""
        if self._zero.cpu_offload and (changed := self.gradient(parameter)) is not None:
            self._zero.norm_for_param_grads[self._zero.get_param_id(parameter)] = changed.double().norm(2)

    def _update_group(self, group: int) -> None:
        gradient = self._zero.single_partition_of_fp32_groups[group].grad
        updated = [each for key, each in self._found.items() if each.group == group and key not in self.left_alone]
        for each in updated:
            each.weight.grad = each.of(gradient)
        try:
            self._update(group)
        finally:
            for each in updated:
                each.weight.grad = None

    def take_over(self, states: Mapping[torch.Tensor, Mapping[str, Any]], stepped: torch.optim.Optimizer) -> None:
        """What the cell put into the optimizer, such as moments that it loaded, is the pieces' from now on."""
        for parameter, state in states.items():
            stepped.state.pop(parameter, None)
            fragment = self.fragment(parameter)
            if fragment is not None:
                stepped.state[fragment.weight] = cut_state(state, parameter, fragment.master_of)

    def close(self) -> None:
        """Let DeepSpeed update parts by itself again."""
        del self._zero._optimizer_step

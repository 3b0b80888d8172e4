"""What a rank has of each parameter under ZeRO 1 and 2: a flat part of its fp32 copy, of its gradient and its moments.

DeepSpeed joins the parameters of a group to one flat tensor and cuts that into equal parts, one a rank: a rank has all
of some parameters, a part of others, and nothing of the rest (https://arxiv.org/abs/1910.02054).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A rank's part of a parameter: ``numel`` elements from ``first`` of the flattened parameter, which are those from
    ``start`` of part ``group`` of the optimizer's. ``weight``: the fp32 copy, a view."""

    first: int
    numel: int
    start: int
    group: int
    weight: torch.Tensor

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The elements in a tensor that is shaped like the part of the group; a view."""
        return flat.view(-1).narrow(0, self.start, self.numel)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The elements of a tensor that is shaped like the parameter."""
        return whole.reshape(-1)[self.first : self.first + self.numel]


class Partitions:
    """The parts of this rank. ``optimizer``: a ``DeepSpeedZeroOptimizer`` of stage 1 or 2."""

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer
        self._found: dict[int, Fragment] = {}
        for group in optimizer.bit16_groups:
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                    self._found[id(parameter)] = Fragment(
                        own.start, own.numel, flat.start, mapping.param_group_index, mapping.hp_fragment.detach()
                    )

    def fragment(self, parameter: torch.Tensor) -> Fragment | None:
        """What this rank has of a parameter; None where that is nothing."""
        return self._found.get(id(parameter))

    def gradient(self, parameter: Any) -> torch.Tensor | None:
        """This rank's part of the reduced gradient, a view; None where it has none of it."""
        found = self.fragment(parameter)
        if found is None:
            return None
        if self._zero.cpu_offload:
            return found.of(self._zero.single_partition_of_fp32_groups[found.group].grad)
        parts = self._zero.averaged_gradients[found.group]
        return parts[parameter._index_in_param_group].view(-1) if parts is not None else None

    def flat(self, group: int) -> torch.Tensor:
        """The tensor that the optimizer updates for a group."""
        return self._zero.single_partition_of_fp32_groups[group]

    def tell_norm(self, parameter: torch.Tensor) -> None:
        """A part of the gradient was changed in place, of which DeepSpeed has the norm already (offload)."""
        if self._zero.cpu_offload and (changed := self.gradient(parameter)) is not None:
            self._zero.norm_for_param_grads[self._zero.get_param_id(parameter)] = changed.double().norm(2)


class FragmentState(MutableMapping[str, Any]):
    """What the optimizer keeps for one fragment: views of what it keeps for the whole part, and its numbers."""

    def __init__(self, states: MutableMapping[Any, Any], flat: torch.Tensor, fragment: Fragment) -> None:
        self._states = states
        self._flat = flat
        self._fragment = fragment

    def _is_cut(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.shape == self._flat.shape

    def __getitem__(self, name: str) -> Any:
        value = self._states[self._flat][name]
        return self._fragment.of(value) if self._is_cut(value) else value

    def __setitem__(self, name: str, value: Any) -> None:
        own = self._states.get(self._flat, {})
        if isinstance(value, torch.Tensor) and value.dim() and value.numel() == self._fragment.numel:
            if name not in own:
                own[name] = torch.zeros_like(self._flat, dtype=value.dtype, requires_grad=False)
            self._fragment.of(own[name]).copy_(value)
        else:
            own[name] = value
        self._states[self._flat] = own

    def __delitem__(self, name: str) -> None:
        """Nothing: other fragments of the part keep theirs in the same tensor."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._states.get(self._flat, {}))

    def __len__(self) -> int:
        return len(self._states.get(self._flat, {}))


class FragmentStates(MutableMapping[torch.Tensor, Any]):
    """The state of an optimizer of parts, by the weight of a fragment. A part whose state is first replaced is emptied
    once: what its fragments are not given again, none of them has."""

    def __init__(self, optimizer: torch.optim.Optimizer, partitions: Partitions, fragments: Iterable[Fragment]) -> None:
        self._states = optimizer.state
        self._found = {id(item.weight): (item, partitions.flat(item.group)) for item in fragments}
        self._weights = [item.weight for item in fragments]
        self._emptied: set[int] = set()

    def __getitem__(self, weight: torch.Tensor) -> MutableMapping[str, Any]:
        found = self._found.get(id(weight))
        return {} if found is None else FragmentState(self._states, found[1], found[0])

    def __setitem__(self, weight: torch.Tensor, state: Mapping[str, Any]) -> None:
        self[weight].update(state)

    def __delitem__(self, weight: torch.Tensor) -> None:
        found = self._found.get(id(weight))
        if found is not None and id(found[1]) not in self._emptied:
            self._emptied.add(id(found[1]))
            self._states.pop(found[1], None)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class FragmentedOptimizer:
    """The optimizer as a checkpoint reads and writes it: with parameters and state by fragment.

    ``keys``: of each parameter group, the weights of its parameters' fragments, or an empty tensor for each of which
    this rank has nothing.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, states: FragmentStates, keys: Sequence[list[torch.Tensor]]
    ) -> None:
        self.param_groups = [_Group(group, own) for group, own in zip(optimizer.param_groups, keys, strict=True)]
        self.state = states


class _Group(MutableMapping[str, Any]):
    """The options of a group, and fragments in place of its flat tensor."""

    def __init__(self, group: dict[str, Any], fragments: list[torch.Tensor]) -> None:
        self._group = group
        self._fragments = fragments

    def __getitem__(self, name: str) -> Any:
        return self._fragments if name == "params" else self._group[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._group[name] = value

    def __delitem__(self, name: str) -> None:
        del self._group[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)

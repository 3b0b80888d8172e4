"""What a rank has of each parameter under ZeRO 3: an equal flat part of each, of its gradient and of its moments.

DeepSpeed cuts every parameter into one part a rank, the last of which may be padded, and joins the parts of a group to
one flat tensor in fp32, which it gives the optimizer as one weight (https://arxiv.org/abs/1910.02054, section 5.3).
Here the optimizer is given the parts one by one, without padding, as ``partitions`` does it for ZeRO 1 and 2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from workbench.engine.frameworks.deepspeed.partitions import Fragment
from workbench.engine.frameworks.torch_common.optimizer_state import cut_state
from workbench.engine.state.layout import LossScaler, Originals, Place, RankState, Slot, Target, whole_buffers
from workbench.errors import ConfigError


def own_part(parameter: Any) -> tuple[int, int]:
    """First element and number of elements, without padding, of this rank's part of a parameter."""
    size = parameter.partition_numel()
    first = min(parameter.ds_numel, parameter.ds_zero_partition_rank * size)
    return first, min(size, parameter.ds_numel - first)


class ShardedPartitions:
    """The parts of this rank, which ``stepped``, the user's optimizer, updates from now on. ``zero``: the
    ``DeepSpeedZeroOptimizer_Stage3`` around it."""

    def __init__(self, zero: Any, stepped: torch.optim.Optimizer) -> None:
        self._zero = zero
        self._stepped = stepped
        self._found: dict[int, Fragment] = {}
        #: id of a parameter -> the part that the forward pass uses, and its number in its group
        self._used: dict[int, tuple[torch.Tensor, int]] = {}
        weights: dict[int, list[torch.nn.Parameter]] = {index: [] for index in range(len(stepped.param_groups))}
        for group, parameters in enumerate(zero.fp16_groups):
            updated, used = zero.fp32_partitioned_groups_flat[group].detach(), zero.fp16_partitioned_groups_flat[group]
            for index, parameter in enumerate(parameters):
                _, start, _ = zero.grad_position[zero.get_param_id(parameter)]
                first, numel = own_part(parameter)
                self._used[id(parameter)] = (used.narrow(0, start, numel), index)
                weight = torch.nn.Parameter(updated.narrow(0, start, numel))
                self._found[id(parameter)] = Fragment(first, numel, start, group, weight)
                if numel:
                    weights[zero.sub_group_to_group_id[group]].append(weight)
        for index, own in weights.items():
            stepped.param_groups[index]["params"] = own
        zero._optimizer_step = self._update_group
        #: ids of the parameters that the next update leaves as they are
        self.left_alone: Collection[int] = frozenset()

    @property
    def updated(self) -> Collection[int]:
        """Ids of the parameters of which ranks update parts."""
        return self._found.keys()

    def fragment(self, parameter: torch.Tensor) -> Fragment | None:
        """What this rank has of a parameter; None where that is nothing."""
        found = self._found.get(id(parameter))
        return found if found is not None and found.numel else None

    def used(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of a parameter that ranks gather for the forward pass: in fp32 what the optimizer updates."""
        return self._used[id(parameter)][0]

    def gradient(self, parameter: Any) -> torch.Tensor | None:
        """This rank's part of the reduced gradient, a view; None where it has none of it."""
        found = self.fragment(parameter)
        if found is None:
            return None
        if self._zero.offload_optimizer:
            return found.of(self._zero.fp32_partitioned_groups_flat[found.group].grad)
        parts = self._zero.averaged_gradients.get(found.group)
        return None if parts is None else parts[self._used[id(parameter)][1]].narrow(0, 0, found.numel)

    def tell_norm(self, parameter: torch.Tensor) -> None:
        """A part of the gradient was changed in place, of which DeepSpeed has the norm already (offload)."""
        if self._zero.offload_optimizer and (changed := self.gradient(parameter)) is not None:
            self._zero.norm_for_param_grads[self._zero.get_param_id(parameter)] = changed.double().norm(2)

    def _update_group(self, group: int) -> None:
        gradient = self._zero.fp32_partitioned_groups_flat[group].grad
        updated = [
            each
            for key, each in self._found.items()
            if each.group == group and each.numel and key not in self.left_alone
        ]
        for each in updated:
            each.weight.grad = each.of(gradient)
        try:
            self._stepped.step()  # weights of other groups have no gradient now
        finally:
            for each in updated:
                each.weight.grad = None

    def take_over(self, states: Mapping[torch.Tensor, Mapping[str, Any]], stepped: torch.optim.Optimizer) -> None:
        """As ``Partitions.take_over``."""
        for parameter, state in states.items():
            stepped.state.pop(parameter, None)
            fragment = self.fragment(parameter)
            if fragment is not None:
                whole = torch.empty(parameter.ds_shape, device="meta")  # type: ignore[attr-defined]
                stepped.state[fragment.weight] = cut_state(state, whole, fragment.master_of)

    def release(self) -> None:
        """Let go of whole weights, so that the next forward pass gathers them anew: a checkpoint may have been read
        into their parts. No communication."""
        self._zero._partition_all_parameters()

    def close(self) -> None:
        """Let DeepSpeed update by itself again."""
        del self._zero._optimizer_step


@contextmanager
def gathered(zero: Any, parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """While entered, all weights are whole on every rank, and modules compute without gathering. Collective."""
    offload = zero.parameter_offload
    replaced = {
        "pre_sub_module_forward_function": parameter_offload.FWD_MODULE_STACK.append,  # the hook behind it pops
        "post_sub_module_forward_function": _nothing,
        "pre_sub_module_backward_function": _nothing,
        "post_sub_module_backward_function": _nothing,
    }
    offload.partition_all_parameters()
    with GatheredParameters(list(parameters)):
        vars(offload).update(replaced)
        try:
            yield
        finally:
            for name in replaced:
                delattr(offload, name)


class GatheredOnly(TorchFunctionMode):
    """While entered, refuses, with ``ConfigError``, a computation in the graph with one of ``parameters`` (name ->
    parameter) that is not gathered: it has no elements then, and a sum over it would be 0."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        empty = [each for each in tree_leaves(args) if id(each) in self._names and not each.numel()]
        found = func(*args, **(kwargs or {}))
        if empty and any(getattr(each, "grad_fn", None) is not None for each in tree_leaves(found)):
            name = self._names[id(empty[0])]
            raise ConfigError(
                f"loss_fn or the model computes with {name}, of which --plugin zero3 has a part: a weight is gathered "
                "for its module, and where it is read of that (model.layer.weight); not in model.parameters(), and not "
                "for later. Read it where it is used, or use --plugin zero2",
                field="loss_fn",
            )
        return found


def _nothing(module: torch.nn.Module) -> None:
    """In place of what gathers or releases the weights of a module."""


@dataclass(frozen=True, kw_only=True)
class ShardedState:
    """``module``: the user's, as the engine left it; ``originals``: its names and shapes before. ``optimizer`` updates
    the parts of this rank. ``is_first``: this rank is the first."""

    module: torch.nn.Module
    originals: Originals
    optimizer: torch.optim.Optimizer
    partitions: ShardedPartitions
    is_first: bool

    def rank_state(self, scaler: LossScaler | None) -> RankState:
        """As ``Checkpointable.rank_state``."""
        return RankState(
            slots=[self._slot(self.originals.name(name), each) for name, each in self.module.named_parameters()],
            buffers=whole_buffers(self.module),
            saves_buffers=self.is_first,
            optimizer=self.optimizer,
            scaler=scaler,
            tied=self.originals.tied,
        )

    def _slot(self, name: str, parameter: Any) -> Slot:
        first, numel = own_part(parameter)
        place = Place(tuple(self.originals.shapes[name]), None, ((first, numel),))
        fragment = self.partitions.fragment(parameter)
        if fragment is None:  # nothing, or a part that nobody updates
            part = parameter.ds_tensor.detach().view(-1).narrow(0, 0, numel)
            return Slot(name, Target(part, place), (), part, numel, numel > 0)
        used = Target(self.partitions.used(parameter).detach(), place)
        return Slot(name, Target(fragment.weight.detach(), place), (used,), fragment.weight, numel, True)

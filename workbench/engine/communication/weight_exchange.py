"""Ranks that step by themselves: when they exchange weights, by an algorithm of local steps, and what they keep."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.core.algorithms import ChosenAlgorithm
from workbench.engine.base.names import users_name
from workbench.engine.communication.base import Draws
from workbench.engine.communication.local_steps import Weight
from workbench.engine.communication.own import made_local


class WeightExchange:
    """One algorithm of local steps on this rank. ``end_step`` follows each step, made or skipped, on all ranks.

    ``parameters``: those that are trained, by name. Running statistics of batch normalisation are averaged when all
    parameters were exchanged. A frozen parameter takes part once more, until ranks hold the same, and then stays as it
    is.
    """

    def __init__(
        self,
        chosen: ChosenAlgorithm,
        module: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        group: dist.ProcessGroup,
        seed: int,
    ) -> None:
        self._group = None if group is dist.group.WORLD else group
        self._ranks, self._rank = dist.get_world_size(group), dist.get_rank(group)
        self._seed = seed
        self._algorithm = made_local(chosen)
        self._parameters = {users_name(name): parameter for name, parameter in parameters.items()}
        self._statistics = _running_statistics(module)
        self._step = torch.zeros((), dtype=torch.int64)
        self._differ = torch.zeros((), dtype=torch.int64)
        # of each parameter: whether its local steps are yet to begin, and whether it was frozen since it was exchanged
        self._fresh = torch.ones(len(self._parameters), dtype=torch.int64)
        self._settled = torch.zeros(len(self._parameters), dtype=torch.int64)
        #: what a checkpoint keeps of this rank: tensors that are changed in place
        self.kept: dict[str, torch.Tensor] = {
            "step": self._step,
            "differ": self._differ,
            "fresh": self._fresh,
            "settled": self._settled,
        }
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        for name, parameter in self._parameters.items():
            self._kept[name] = self._algorithm.state(_exact(parameter.detach()))
            self.kept |= {f"{what}/{name}": tensor for what, tensor in self._kept[name].items()}
        self._own: dict[int, torch.Tensor] = {}

    @property
    def is_alone(self) -> bool:
        """Whether the step that is computed, or comes next, is this rank's own: no gradient is averaged."""
        return not self._algorithm.averages_gradients(int(self._step) + 1)

    @property
    def is_due(self) -> bool:
        """Whether weights are exchanged after the step that is computed, or comes next."""
        step, places = int(self._step) + 1, range(len(self._parameters))
        return self.is_alone and any(self._algorithm.is_due(step, place) for place in places)

    @property
    def do_differ(self) -> bool:
        """Whether ranks may hold other weights by now. Alike on all ranks."""
        return bool(self._differ)

    @torch.no_grad()
    def begin_step(self) -> None:
        """Before the forward pass of a step."""
        for place, (name, is_fresh) in enumerate(zip(self._parameters, self._fresh.tolist(), strict=True)):
            if is_fresh:
                self._algorithm.begin(self._weight(place, name))
        self._fresh.zero_()

    @torch.no_grad()
    def end_step(self, frozen: Collection[int] = ()) -> None:
        """After the update of a step: exchange what is due. ``frozen``: ids of parameters that nothing is to change.
        Collective where something is due."""
        alone = self.is_alone
        self._step += 1
        step, due = int(self._step), []
        settled = self._settled.tolist()
        for place, (name, parameter) in enumerate(self._parameters.items()):
            is_frozen = id(parameter) in frozen
            settled[place] = int(settled[place] and is_frozen)
            if alone and self._algorithm.is_due(step, place) and not settled[place]:
                due.append(self._weight(place, name))
                self._fresh[place] = 1
                settled[place] = int(is_frozen)
        self._settled.copy_(torch.tensor(settled))
        if alone:
            self._differ.fill_(1)
        if due:
            self._exchange(due)
        if alone and all(self._algorithm.is_due(step, place) for place in range(len(self._parameters))):
            self._average(self._statistics)
            self._differ.fill_(int(not self._algorithm.makes_alike))

    def _weight(self, place: int, name: str) -> Weight:
        value = self._parameters[name].detach()
        draws = Draws(self._seed, self._rank, int(self._step), place, value.device)
        return Weight(name, value, self._kept[name], draws)

    def _exchange(self, due: list[Weight]) -> None:
        """One all-reduce of what is sent of these weights."""
        sent = [_exact(self._algorithm.send(weight)) for weight in due]
        flat = torch.cat([part.flatten() for part in sent])
        dist.all_reduce(flat, group=self._group)
        flat /= self._ranks
        for weight, part, mean in zip(due, sent, flat.split([part.numel() for part in sent]), strict=True):
            self._algorithm.receive(weight, mean.view(part.shape))

    def _average(self, tensors: list[torch.Tensor]) -> None:
        if not tensors:
            return
        flat = torch.cat([_exact(tensor).flatten() for tensor in tensors])
        dist.all_reduce(flat, group=self._group)
        flat /= self._ranks
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While entered, weights and running statistics are the means over the ranks, for evaluations and checkpoints.
        Collective where ranks differ; entered again inside, it does nothing."""
        if self._own or not self.do_differ:
            yield
            return
        tensors = [*(parameter.detach() for parameter in self._parameters.values()), *self._statistics]
        with torch.no_grad():
            own = [tensor.clone() for tensor in tensors]
            self._average(tensors)
        self._own = {tensor.data_ptr(): copy for tensor, copy in zip(tensors, own, strict=True)}
        try:
            yield
        finally:
            self._own = {}
            with torch.no_grad():
                for tensor, copy in zip(tensors, own, strict=True):
                    tensor.copy_(copy)

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """What this rank itself holds in place of ``tensor``, a parameter or a buffer of the model."""
        return self._own.get(tensor.data_ptr(), tensor)


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in fp32, or in a larger type where that is the tensor's own."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def _running_statistics(module: torch.nn.Module) -> list[torch.Tensor]:
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm)]
    found = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    return [statistic for statistic in found if statistic is not None]

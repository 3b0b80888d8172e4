"""Lets low-level ZeRO reduce the same parameters in the same order on every rank.

Colossal-AI puts gradients into buckets as it meets them and leaves out parameters without one (low_level_optim.py:431,
736). Where ranks use different parameters, as with experts or branches, gradients of different parameters are added up,
or messages of different sizes meet. Here ranks agree first. Where they use the same parameters, these go into buckets
while backward runs, in one order on all ranks: in that of backward they may differ, as after sequences of different
lengths. Else the step is reduced after backward, with zeros for missing gradients.
"""

from __future__ import annotations

import weakref
from collections import deque
from functools import partial
from typing import Any

import torch

from workbench.engine.frameworks.torch_common.autograd_graph import graph_of
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted


class ZeroReduction:
    """Takes the place of the hooks of ``optimizer``, a ``LowLevelZeroOptimizer`` over the ranks of ``group``."""

    def __init__(self, optimizer: Any, device: torch.device, group: Any) -> None:
        self._optimizer = optimizer
        self._device = device
        self._group = group
        self._parameters = [
            (parameter, group)
            for group in range(optimizer.num_param_groups)
            for parameter in optimizer._working_param_groups[group]
            if parameter.requires_grad
        ]
        self._while_backward = bool(optimizer.grad_handles)
        self._afterwards = True
        #: what this backward pass is still to put into buckets, the last layer first, and what it has computed of that
        self._waiting: deque[tuple[Any, int]] = deque()
        self._computed: set[int] = set()
        while optimizer.grad_handles:
            optimizer.grad_handles.pop().remove()
        for parameter, _ in self._parameters if self._while_backward else ():
            # weakly, as the user's parameters outlive the optimizer
            hook = partial(_computed, weakref.proxy(self))
            optimizer.grad_handles.append(parameter.register_post_accumulate_grad_hook(hook))
        optimizer._reduce_grad = self._reduce

    def before_backward(self, loss: torch.Tensor) -> None:
        """Agree whether the next backward pass reduces while it runs. Collective where it may."""
        if not (self._while_backward and self._optimizer.require_grad_sync):
            self._afterwards = True
            return
        graph = graph_of(loss)
        used = [int(id(parameter) in graph.leaves) for parameter, _ in self._parameters]
        *counts, reentrant = self._summed([*used, int(graph.is_reentrant)])
        self._afterwards = bool(reentrant) or any(0 < count < self._group.size() for count in counts)
        pairs = zip(self._parameters, counts, strict=True)
        self._waiting = deque(reversed([parameter for parameter, count in pairs if count]))
        self._computed = set()

    def _summed(self, numbers: list[int]) -> list[int]:
        total = torch.tensor(numbers, dtype=torch.int32, device=self._device)
        all_reduce_uncounted(total, group=self._group)
        return total.tolist()

    def computed(self, parameter: torch.Tensor) -> None:
        """Backward has computed the gradient of a parameter."""
        if self._optimizer.require_grad_sync and not self._afterwards:
            self._computed.add(id(parameter))
            while self._waiting and id(self._waiting[0][0]) in self._computed:
                self._optimizer._add_to_bucket(*self._waiting.popleft())

    def reduce_afterwards(self) -> None:
        """Reduce all gradients, after the backward passes of a pipeline. Collective."""
        self._afterwards = True
        self._reduce(False)

    def _reduce(self, partition: bool) -> None:
        """As ``LowLevelZeroOptimizer._reduce_grad``, at the end of a backward pass."""
        if self._afterwards:
            counts = self._summed([int(parameter.grad is not None) for parameter, _ in self._parameters])
            for (parameter, group), count in zip(self._parameters, counts, strict=True):
                if count and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if count:
                    self._optimizer._add_to_bucket(parameter, group)
        while not self._afterwards and self._waiting:  # one of them is in the graph, and backward did not come there
            parameter, group = self._waiting.popleft()
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._optimizer._add_to_bucket(parameter, group)
        self._optimizer._run_reduction()


def _computed(reduction: ZeroReduction, parameter: torch.Tensor) -> None:
    reduction.computed(parameter)

"""Lets FSDP2 reduce the same parameters on every rank, whichever a rank's samples used.

FSDP2 leaves out parameters without a gradient. Where ranks use different ones of a group, as with branches, gradients
of different parameters would be added up. Here missing gradients are reduced as zeros, and a parameter that no rank
used keeps none, as in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.frameworks.torch.fsdp.sharding import sharded_modules, sharded_parameters
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted


class FsdpReduction:
    """Gradients are reduced while backward of the last piece runs; those of earlier pieces stay whole on their rank.

    ``may_differ``: ranks may use different parameters in a step.
    """

    #: the recorder of collectives sees its calls
    afterwards = True

    def __init__(self, module: torch.nn.Module, device: torch.device, *, may_differ: bool) -> None:
        self._root = sharded_modules(module)[0]
        self._device = device
        self._parameters = [each for each in sharded_parameters(module) if each.sharded_param.requires_grad]
        self._may_differ = may_differ
        self._used: set[int] = set()
        self._hooked: set[int] = set()
        if may_differ:
            self._root.set_reduce_scatter_unused_params(True)

    @contextmanager
    def around(self, *, is_last: bool) -> Iterator[None]:
        """As ``DdpReduction.around``."""
        self._root.set_requires_gradient_sync(is_last)
        yield

    def looks_at(self, loss: torch.Tensor) -> None:
        """Before the backward pass of a piece: look for gradients of the parameters that were gathered."""
        for place, parameter in enumerate(self._parameters if self._may_differ else ()):
            whole = getattr(parameter, "_unsharded_param", None)
            if place not in self._hooked and whole is not None and whole.requires_grad:  # a cell may have frozen it
                self._hooked.add(place)
                whole.register_post_accumulate_grad_hook(partial(_note, self._used, place))

    def finish(self) -> None:
        """Take the gradient away from parameters that no rank used. Collective where ranks may differ."""
        if not self._may_differ:
            return
        used = [int(place in self._used) for place in range(len(self._parameters))]
        agreed = torch.tensor(used, dtype=torch.int32, device=self._device)
        all_reduce_uncounted(agreed, dist.ReduceOp.MAX)
        for parameter, is_used in zip(self._parameters, agreed.tolist(), strict=True):
            if not is_used:
                parameter.sharded_param.grad = None
        self._used.clear()


def _note(used: set[int], place: int, parameter: Any) -> None:
    used.add(place)

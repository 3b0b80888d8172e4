"""Averages the gradients of a data-parallel step by an algorithm: inside DistributedDataParallel, or after backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from workbench.core.algorithms import ChosenAlgorithm
from workbench.engine.base.names import users_name
from workbench.engine.communication.base import Draws, Exchange, Finish, Gradient
from workbench.engine.communication.own import made


class GradientExchange:
    """One algorithm, and what ranks keep for it: error feedback adds what a rank did not send to its next gradient.

    ``parameters``: those whose gradients are exchanged, by name. ``scale``: what gradients are multiplied by at the
    moment (fp16); what is left over is kept without it.
    """

    def __init__(
        self,
        chosen: ChosenAlgorithm,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        group: dist.ProcessGroup,
        seed: int,
        scale: Callable[[], float],
    ) -> None:
        self._names = {id(parameter): users_name(name) for name, parameter in parameters.items()}
        self._places = {name: place for place, name in enumerate(self._names.values())}
        # no reference to the group of all ranks, which would end in a thread of gloo that drops the last callback
        self._group = None if group is dist.group.WORLD else group
        self._seed = seed
        self._rank = dist.get_rank(group)
        self._scale = scale
        self._device = next(iter(parameters.values())).device
        self._step = torch.zeros((), dtype=torch.int64)
        self._left_over: dict[str, torch.Tensor] = {}
        self._algorithm: Exchange = made(chosen)
        #: what a checkpoint keeps of this rank: tensors that are changed in place
        self.kept: dict[str, torch.Tensor] = {"step": self._step}
        for parameter in parameters.values():
            name = self._names[id(parameter)]
            if chosen.feedback:
                self._left_over[name] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
                self.kept[f"left_over/{name}"] = self._left_over[name]
            for what, tensor in self._algorithm.state(name, parameter.shape, self._draws(name)).items():
                self.kept[f"{what}/{name}"] = tensor

    def _draws(self, name: str) -> Draws:
        return Draws(self._seed, self._rank, int(self._step), self._places[name], self._device)

    def attach(self, ddp: Any) -> None:
        """Let DistributedDataParallel average its buckets so, while backward goes on."""
        ddp.register_comm_hook(None, lambda state, bucket: self._in_bucket(bucket))

    def _in_bucket(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        awaited, finish = self._begin(bucket.parameters(), bucket.gradients())
        if awaited is None:
            finish()
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        def write(ended: torch.futures.Future[object]) -> torch.Tensor:
            ended.value()  # raises what the collective raised
            finish()
            return bucket.buffer()

        return awaited.then(write)

    def average(self, parameters: Sequence[torch.Tensor]) -> None:
        """Average the gradients in ``.grad`` of parameters, in place, after backward. Collective."""
        used = [(each, each.grad) for each in parameters if each.grad is not None]
        awaited, finish = self._begin([each for each, _ in used], [gradient for _, gradient in used])
        if awaited is not None:
            awaited.wait()
        finish()

    def end_step(self) -> None:
        """The gradients of a step are averaged: the next one draws other random numbers."""
        self._step += 1

    @torch.no_grad()
    def _begin(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
    ) -> tuple[torch.futures.Future[object] | None, Callable[[], None]]:
        """Begin to average gradients, and a function that writes the means in their place."""
        scale = self._scale()
        asked = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            name = self._names[id(parameter)]
            value = gradient.detach().float()
            before = self._left_over.get(name)
            asked.append(Gradient(name, value if before is None else value + before * scale, self._draws(name)))
        awaited, finish = self._algorithm.begin(asked, self._group)
        return awaited, lambda: self._write(asked, gradients, finish, scale)

    @torch.no_grad()
    def _write(
        self, asked: Sequence[Gradient], gradients: Sequence[torch.Tensor], finish: Finish, scale: float
    ) -> None:
        for each, gradient, found in zip(asked, gradients, finish(), strict=True):
            gradient.copy_(found.mean)
            before = self._left_over.get(each.name)
            if before is None or found.sent is None:
                continue
            rest = (each.value - found.sent) / scale
            # where it is not finite the step is skipped, or the run stopped: what was left over stays
            before.copy_(torch.where(rest.isfinite().all(), rest, before))

"""Losses and outputs of a model that is whole on every rank, in the run's precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in
from workbench.engine.frameworks.torch_common.batches import (
    call_model,
    evaluating,
    first_output,
    outputs_seen,
    to_device,
)
from workbench.engine.frameworks.torch_common.losses.terms import WHOLE, Division, LossTerm, loss_term
from workbench.engine.frameworks.torch_common.trained import users_model

#: precision of a run -> the type in which its model computes
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class WholeModel:
    """``module``: what ``trained`` made of ``workload``, on ``device``."""

    def __init__(self, workload: Workload, module: torch.nn.Module, device: torch.device, precision: str) -> None:
        self._workload = workload
        self._module = module
        self._device = device
        self._precision = precision

    def autocast(self) -> AbstractContextManager[Any]:
        """While entered, torch computes in the run's precision."""
        dtype = AUTOCAST_TYPES.get(self._precision)
        return nullcontext() if dtype is None else torch.autocast(self._device.type, dtype=dtype)

    def term(
        self,
        batch: Batch,
        samples: int,
        tell: Callable[[str, str], object] | None = None,
        division: Division = WHOLE,
    ) -> LossTerm:
        """The loss of a batch of ``samples`` samples on the device, by ``loss_fn`` or ``criterion``; ``tell`` is told
        what is to be known of it. ``division``: as of ``loss_term``."""
        model = users_model(self._module)
        with self.autocast():
            return loss_term(lambda: self._loss_of(model, batch), tell, samples=samples, division=division)

    def _loss_of(self, model: torch.nn.Module, batch: Batch) -> Any:
        if self._workload.loss_fn is not None:
            return self._workload.loss_fn(model, batch)
        assert self._workload.criterion is not None  # check refused a workload without
        return self._workload.criterion(call_model(model, batch), batch)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``."""
        with evaluating(self._module), self.autocast():
            return call_model(users_model(self._module), to_device(batch, self._device))

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``."""
        with self.evaluation() as model, outputs_seen(model) as seen:
            term = self.term(to_device(contents(batch), self._device), samples_in(batch))
        return first_output(seen) if outputs else None, term

    @contextmanager
    def evaluation(self) -> Iterator[torch.nn.Module]:
        """As ``Validating.evaluation``."""
        with torch.no_grad(), evaluating(self._module), self.autocast():
            yield users_model(self._module)


class EvaluatedWhole:
    """``Evaluating`` and ``Validating`` where each rank has the whole model. ``_whole``: made in ``prepare``."""

    _whole: WholeModel

    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``."""
        return self._whole.forward(batch)

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``."""
        return self._whole.evaluated(batch, outputs=outputs)

    def evaluation(self) -> AbstractContextManager[torch.nn.Module]:
        """As ``Validating.evaluation``."""
        return self._whole.evaluation()

"""Pipelines of Megatron's stages, by its own schedule 1F1B: the last stage has the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in, split
from workbench.engine.frameworks.megatron.strategy import MegatronStrategy
from workbench.engine.frameworks.torch_common.batches import call_model, evaluating, to_device
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.terms import (
    WHOLE,
    Division,
    LossTerm,
    count_of_models_labels,
    expected_labels,
    loss_term,
)
from workbench.errors import ConfigError


class HybridStrategy(MegatronStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        config: Any = workload.model.config
        layers = config.num_hidden_layers
        if layers % spec.plan.pp:
            raise ConfigError(
                f"--pp {spec.plan.pp} does not divide the {layers} layers of the model: choose a number of stages that "
                "does",
                field="--pp",
            )

    def _make_average(self) -> LossAverage:
        if self.mesh.pp == 1:
            return super()._make_average()
        return LossAverage(self.mesh, self.device, self.tell, self._expected)

    def _expected(self, batch: Batch) -> Any:
        labels = expected_labels(self.workload.model, batch)
        return samples_in(batch) if labels is None else labels

    def has_loss(self) -> bool:
        """As ``Pipelined.has_loss``."""
        return self.coordinates.pp == self.mesh.pp - 1

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor | None:  # type: ignore[override]
        if self.mesh.pp == 1:
            return super().forward_backward(pieces)
        self._part_norms = None
        micro_batches = self.spec.plan.micro_batches
        self.average.begin(pieces, micro_batches)
        losses: list[torch.Tensor] = []
        for index, piece in enumerate(pieces):
            parts = split(piece, micro_batches)
            numbered = [(index * micro_batches + number, part) for number, part in enumerate(parts)]
            self._through_stages(numbered, partial(self._weighted, losses), forward_only=False)
        self._frozen_by_cell.check()
        self._reduction.finish()
        return self._end_gradients(torch.stack(losses).sum() if losses else None)

    def _through_stages(
        self, micro_batches: list[tuple[int, Batch]], result_of: Callable[[Any, Batch, int], Any], *, forward_only: bool
    ) -> list[Any]:
        """Forward, and backward, of numbered micro-batches. What ``result_of`` makes of outputs, a moved batch and the
        number of its samples on the last stage: a loss, or with ``forward_only`` what is returned there."""
        device = self.device

        def forward_step(batches: Iterator[tuple[int, Batch]], model: torch.nn.Module) -> Any:
            number, part = next(batches)
            self.mark("transfer", number)
            batch = to_device(contents(part), device)
            self.mark("forward", number)
            outputs = call_model(self.workload.model, batch)

            def finish(outputs: Any, non_loss_data: bool = False) -> Any:
                found = result_of(outputs, batch, samples_in(part))
                return found if non_loss_data else (found * len(micro_batches), {})  # it divides by their number

            self.mark("backward", number)
            return outputs, finish

        found: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=[self._ddp],
            num_microbatches=len(micro_batches),
            seq_length=1,  # stages tell each other the shapes
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        return found

    def _weighted(self, losses: list[torch.Tensor], outputs: Any, batch: Batch, samples: int) -> torch.Tensor:
        tell = self.tell if self.average.is_new else None
        term = self._term_of(outputs, batch, samples, tell, self.average.division)
        loss = self.average.weighted(term, samples)
        losses.append(loss.detach().clone())
        scaled: torch.Tensor = self._scaler.scale(loss)
        return scaled

    def _term_of(
        self,
        outputs: Any,
        batch: Batch,
        samples: int,
        tell: Callable[[str, str], object] | None = None,
        division: Division = WHOLE,
    ) -> LossTerm:
        criterion = self.workload.criterion
        assert criterion is not None  # check refused a workload without
        model = self.workload.model
        count = lambda loss: count_of_models_labels(model, loss, outputs, batch)  # noqa: E731
        return loss_term(lambda: criterion(outputs, batch), tell, count, samples=samples, division=division)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``."""
        if self.mesh.pp == 1:
            return super().forward(batch)
        return self._evaluated(batch, lambda outputs, *_: outputs)

    @torch.no_grad()
    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``."""
        if self.mesh.pp == 1:
            return super().evaluated(batch, outputs=outputs)
        return self._evaluated(batch, lambda found, *given: (found if outputs else None, self._term_of(found, *given)))

    def _evaluated(self, batch: Batch, result_of: Callable[..., Any]) -> Any:
        with evaluating(self._module):
            found = self._through_stages([(-1, batch)], result_of, forward_only=True)
        return found[0] if self.has_loss() else None

    def evaluation(self) -> AbstractContextManager[torch.nn.Module]:
        """As ``Validating.evaluation``."""
        if self.mesh.pp > 1:
            raise ConfigError("a pipeline (--pp) has the whole model on no rank", field="--pp")
        return super().evaluation()

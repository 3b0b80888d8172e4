"""Data parallelism by TensorFlow: it computes losses, gradients and updates, and its collectives sum over the ranks."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.tensorflow import world
from workbench.engine.frameworks.tensorflow.generators import generators_of
from workbench.engine.frameworks.tensorflow.losses import KerasLosses
from workbench.engine.frameworks.tensorflow.mirror import MirroredModel
from workbench.engine.frameworks.tensorflow.optimizer import KerasOptimizer
from workbench.engine.frameworks.torch.data_parallel import DataParallelStrategy
from workbench.errors import ConfigError

#: far apart, as ``engine.state.randomness`` has it
_SEED_STRIDE = 1_000_003
_SHOWN = 3
_HIDDEN = {
    "attention": "a layer of Keras computes its attention out of sight",
    "routers": "Keras has no layer of experts",
}
_trainings = [0]


class TensorFlowStrategy(DataParallelStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        synchronised = [norm.name for norm in _norms(_mirrored(workload).model) if norm.synchronized]
        if synchronised:
            raise ConfigError(
                f"{synchronised[0]} has synchronized=True, which Keras does inside of a tf.distribute strategy only: "
                "leave it out, or use --framework torch --sync-batchnorm",
                field="model",
            )

    def _make_whole(self) -> Any:
        self._losses = KerasLosses(self.workload, _mirrored(self.workload))
        return self._losses

    def begin(self) -> None:
        """As ``DataParallelStrategy.begin``: a group for this training."""
        _trainings[0] += 1
        token = torch.tensor([zlib.crc32(f"{os.getpid()} {_trainings[0]}".encode()) & 0x3FFFFFFF])
        if self.mesh.dp > 1:
            torch.distributed.broadcast(token, 0)
        self._group = world.Group(self.mesh.dp, int(token))
        norms = [norm.name for norm in _norms(_mirrored(self.workload).model) if norm.trainable]
        if norms and self.spec.pieces > 1 and self.rank == 0:
            shown = ", ".join(norms[:_SHOWN]) + (f" and {len(norms) - _SHOWN} more" if len(norms) > _SHOWN else "")
            self.tell(
                "batch_norm",
                f"batch normalisation ({shown}) uses the statistics of each rank's and each gradient accumulation "
                "step's own samples: the loss depends on their number, and checkpoints hold the statistics of rank 0",
            )

        self._tell_dense_updates()

    def _tell_dense_updates(self) -> None:
        """Tell that rows of embeddings are updated as all other weights are."""
        layers = _mirrored(self.workload).model._flatten_layers()
        tables = [each for each in layers if isinstance(each, keras.layers.Embedding)]
        optimizer = self.workload.optimizer
        assert isinstance(optimizer, KerasOptimizer)
        if self.rank == 0 and optimizer.keeps_moments and any(each.trainable for each in tables):
            self.tell(
                "dense_updates",
                f"gradients of {tables[0].name} are dense here: {type(optimizer.keras).__name__} updates all of its "
                "rows in each step, where Keras treats rows apart that a batch has not looked up. Losses differ from "
                "those of Keras, as they do between sparse and dense gradients there",
            )

    def _distribute(self) -> None:
        super()._distribute()
        tf.random.set_seed(self.spec.seed + self.coordinates.dp * _SEED_STRIDE)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """As ``DataParallelStrategy.all_reduce``."""
        self._group.all_reduce(tensor)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """As ``DataParallelStrategy.broadcast``."""
        self._group.broadcast(tensor)

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """As ``Replayable.rerun``."""
        with self._losses.searching():
            return super().rerun(pieces, seen)

    @property
    def hidden(self) -> Mapping[str, str]:
        """As ``PartlyInspectable.hidden``."""
        return _HIDDEN

    def generators(self) -> Mapping[str, ModuleGenerator]:
        """As ``Replayable.generators``: those of Keras layers."""
        return generators_of(_mirrored(self.workload).model)

    def close(self) -> None:
        super().close()
        if hasattr(self, "_group"):
            self._group.close()
            del self._group


def _mirrored(workload: Workload) -> MirroredModel:
    assert isinstance(workload.model, MirroredModel)  # as ``cells.adopted`` makes it
    return workload.model


def _norms(model: Any) -> list[Any]:
    return [each for each in model._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]

"""Whole weights from a checkpoint, whatever plan wrote it: on the CPU, in one process, under the model's own names."""

from __future__ import annotations

from pathlib import Path

import torch

from workbench.engine.state.checkpoint_files import ShardReader
from workbench.engine.state.layout import Originals, Place


def whole_weights(path: Path) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of the checkpoint ``path``, by qualified name, as they were saved.

    A tensor that several modules share has its first name only. Raises ``RunDirectoryError`` for a damaged checkpoint.
    """
    reader = ShardReader(path)
    reader.verify(0, 1)
    found = {}
    for key, entry in reader.tensors.items():
        kind, _, name = key.partition("/")
        if kind in ("weights", "buffers"):
            reader.expect(key, tuple(entry["shape"]))
            found[name] = reader.part(key, Place.whole(entry["shape"])).reshape(entry["shape"]).clone()
    return found


@torch.no_grad()
def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Copy the weights of the checkpoint ``path`` into ``model``, in place; each keeps its dtype and device.

    Raises ``ConfigError``, before anything is changed, for a model of other parameters, and ``RunDirectoryError`` for a
    damaged checkpoint.
    """
    reader = ShardReader(path)
    reader.verify(0, 1)
    originals = Originals(model)
    targets = {originals.name(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in targets.items():
        reader.expect(f"weights/{name}", tuple(parameter.shape))
    for name, parameter in targets.items():
        whole = reader.part(f"weights/{name}", Place.whole(parameter.shape))
        parameter.copy_(whole.reshape(parameter.shape))
    for name, buffer in originals.buffers.items():
        if f"buffers/{name}" in reader.tensors:
            buffer.copy_(reader.part(f"buffers/{name}", Place.whole(buffer.shape)).reshape(buffer.shape))

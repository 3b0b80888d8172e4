"""Which weights a checkpoint leaves out, because the directory that the model began from has them."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.engine.pretrained.base import BaseTensor, fingerprint
from workbench.engine.state.layout import RankState, Slot
from workbench.errors import RunDirectoryError


@dataclass
class BaseWeights:
    """``tensors``: those that may be left out, by the parameter's name. ``watch`` them before the first step.
    ``is_told``: whether the log says that they are left out."""

    tensors: Mapping[str, BaseTensor] = field(default_factory=dict)
    is_told: bool = False
    _versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    _files: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def watch(self, held: RankState) -> None:
        """The weights are now those of the directory."""
        self._versions = {slot.name: _versions(slot) for slot in held.slots if slot.name in self.tensors}

    @property
    def directory(self) -> str:
        """Where they are."""
        return str(next(iter(self.tensors.values())).file.parent)

    @property
    def bytes(self) -> int:
        """How many bytes they would be in a checkpoint."""
        return sum(4 * math.prod(tensor.shape) for tensor in self.tensors.values())

    def are_unchanged(self, held: RankState) -> bool:
        """Whether no code has changed, in place, a weight of this rank that no optimizer updates."""
        return all(self._versions.get(slot.name) == _versions(slot) for slot in self._frozen(held))

    def left_out(self, held: RankState) -> set[str]:
        """Names of this rank's parameters that no optimizer updates."""
        return {slot.name for slot in self._frozen(held)}

    def _frozen(self, held: RankState) -> list[Slot]:
        updated = {id(p) for group in held.optimizer.param_groups for p in group["params"]}
        return [slot for slot in held.slots if slot.name in self.tensors and id(slot.key) not in updated]

    def in_index(self, written: Container[str]) -> dict[str, Any]:
        """What the index of a checkpoint says of the tensors that no rank has written ("weights/NAME"), and of the
        files that they are in. Raises ``OSError`` for a file that cannot be read."""
        chosen = {name: tensor for name, tensor in self.tensors.items() if f"weights/{name}" not in written}
        for file in {tensor.file for tensor in chosen.values()} - set(self._files):
            self._files[file] = fingerprint(file)
        return {
            "tensors": {
                f"weights/{name}": {
                    "shape": list(tensor.shape),
                    "dtype": "float32",
                    "shards": [],
                    "base": {"file": str(tensor.file), "name": tensor.name},
                }
                for name, tensor in chosen.items()
            },
            "files": {str(file): self._files[file] for file in {tensor.file for tensor in chosen.values()}},
        }


def _versions(slot: Slot) -> tuple[int, int]:
    return slot.key._version, slot.saved.tensor._version


def check_files(checkpoint: Path, files: Mapping[str, Any]) -> None:
    """Raise ``RunDirectoryError`` unless the files that ``checkpoint`` takes frozen weights from are what they were."""
    for name, known in files.items():
        try:
            found = fingerprint(Path(name))
        except OSError as error:
            raise RunDirectoryError(
                f"{checkpoint} has adapters only, and takes the frozen weights from {name}, which cannot be read "
                f"({error.strerror}): put the directory of the pretrained model back"
            ) from error
        if found != known:
            raise RunDirectoryError(
                f"{checkpoint} has adapters only, and {name} holds other weights than those that they were trained "
                "with: put the directory of the pretrained model back as it was"
            )

"""Weights that a model with adapters has from a directory and never trains: a checkpoint names them and has no copy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engine.base.names import users_name

#: the attribute of a model that says which file and which tensor of it each of its parameters was read from
FILES = "_pretrained_files"
#: a file is known by its size, its header and this many blocks, evenly spread
_HEADER, _BLOCK, _BLOCKS = 1 << 20, 1 << 12, 256


@dataclass(frozen=True)
class BaseTensor:
    """A parameter as a directory has it: the tensor ``name`` of ``file``, of this whole ``shape``."""

    file: Path
    name: str
    shape: tuple[int, ...]


def base_tensors(model: Any) -> dict[str, BaseTensor]:
    """The frozen parameters of a model with adapters that were read from a directory, by qualified name."""
    files: Mapping[str, tuple[Path, str]] = getattr(model, FILES, {})
    if not files or not getattr(model, "peft_config", None):
        return {}
    found = {}
    for name, parameter in model.named_parameters():
        own = users_name(name)
        file, tensor = files.get(own.replace(".base_layer.", "."), (None, ""))
        if file is not None and not parameter.requires_grad:
            found[own] = BaseTensor(file, tensor, tuple(parameter.shape))
    return found


def fingerprint(file: Path) -> dict[str, Any]:
    """What tells a file of weights from another one, by less than all of it: ``bytes``, and ``sample``, the SHA-256 of
    its first megabyte and of blocks of all of its parts. Raises ``OSError``."""
    size = file.stat().st_size
    seen = hashlib.sha256()
    with file.open("rb") as opened:
        seen.update(opened.read(_HEADER))
        for turn in range(_BLOCKS if size > _HEADER else 0):
            opened.seek(_HEADER + (size - _HEADER) * turn // _BLOCKS)
            seen.update(opened.read(_BLOCK))
    return {"bytes": size, "sample": seen.hexdigest()}

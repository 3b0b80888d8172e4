"""A local Hugging Face directory: its ``config.json`` and its safetensors files. Imports no tensor library.

Nothing is looked up on a hub, and no code of the directory is run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError

CONFIG_FILE = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
#: files of a tokenizer, of which a directory has at least one
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
#: files that may lie beside them
BESIDE_TOKENIZERS = (
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
#: types of floating-point weights in safetensors files that can be trained
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class PretrainedDirectory:
    """``path``, ``config`` (the content of ``config.json``), the name of the model's ``architecture`` in the
    transformers library, and ``tensors``: name -> the file that holds it."""

    path: Path
    config: Mapping[str, Any]
    architecture: str
    tensors: Mapping[str, Path]

    @property
    def has_tokenizer(self) -> bool:
        """Whether the directory has files of a tokenizer."""
        return any((self.path / name).is_file() for name in TOKENIZER_FILES)


def read_directory(path: str | Path, *, field: str = "pretrained") -> PretrainedDirectory:
    """What the directory ``path`` holds, by its headers; no weights are read.

    Raises ``ConfigError``, in the name of ``field``, for a directory without ``config.json`` or safetensors files, for
    a damaged file, for quantized weights, and for tensors of types that cannot be trained.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{field} {path}: there is no such directory on this machine, and nothing is downloaded: give a local "
            f"directory with {CONFIG_FILE} and safetensors files",
            field=field,
        )
    config = read_config(folder / CONFIG_FILE, field=field)
    if config.get("quantization_config"):
        raise ConfigError(
            f"{field} {folder}: its weights are quantized (quantization_config in {CONFIG_FILE}), which cannot be "
            "trained: use the directory of the unquantized model",
            field=field,
        )
    tensors: dict[str, Path] = {}
    for file in _weight_files(folder, field):
        for name, kind in _header(file, field).items():
            if kind not in FLOATS:
                raise ConfigError(
                    f"{field} {folder}: tensor {name} in {file.name} has the type {kind}; weights of the types "
                    f"{', '.join(FLOATS)} can be trained",
                    field=field,
                )
            tensors[name] = file
    return PretrainedDirectory(
        path=folder, config=config, architecture=architecture_of(config, folder / CONFIG_FILE, field), tensors=tensors
    )


def read_config(file: Path, *, field: str) -> dict[str, Any]:
    """The content of a model's ``config.json``. ``ConfigError`` for a missing or damaged file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {file}: {error.strerror}", field=field) from error
    except ValueError as error:
        raise ConfigError(f"{field}: {file} is not valid JSON: {error}", field=field) from error
    if not isinstance(found, dict) or not found.get("model_type"):
        raise ConfigError(
            f"{field}: {file} is not a configuration of the transformers library (it has no model_type)", field=field
        )
    return found


def architecture_of(config: Mapping[str, Any], file: Path, field: str) -> str:
    """The class of the transformers library that the configuration names. ``ConfigError`` when it names none."""
    names = config.get("architectures") or []
    if len(names) != 1 or not isinstance(names[0], str):
        raise ConfigError(
            f'{field}: {file} must name one class of the transformers library, such as "architectures": '
            f'["LlamaForCausalLM"], not {names!r}',
            field=field,
        )
    return names[0]


def _weight_files(folder: Path, field: str) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{field}: {index} is damaged: copy it again", field=field) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"{field} {folder}: {_INDEX} names {', '.join(missing)}, which is not there: copy it again", field=field
            )
        return [folder / name for name in names]
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    if pickled:
        raise ConfigError(
            f"{field} {folder}: its weights are pickled ({pickled[0]}), which a rank cannot read in parts: write "
            "safetensors files with AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)",
            field=field,
        )
    raise ConfigError(
        f"{field} {folder}: it has no weights ({_WEIGHTS}, or {_INDEX} with its files): copy them there", field=field
    )


def _header(file: Path, field: str) -> dict[str, str]:
    """Name -> type of the tensors of a safetensors file (8 bytes of length, then JSON)."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("it is shorter than its header")
            entries = json.loads(opened.read(length))
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
        if file.stat().st_size < 8 + length + end:
            raise ValueError(f"it has {file.stat().st_size} of {8 + length + end} bytes")
        return {name: entry["dtype"] for name, entry in entries.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError(
            f"{field}: {file} is not a complete safetensors file ({error}): copy it again", field=field
        ) from error

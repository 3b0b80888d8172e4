"""The directory of a packed data set: its index, its shards, its tokenizer.

::

    index.json                 version, dtype, tokenizer, and the shards in their order
    shard-00000.tokens         the tokens of one text after another: a flat array, little-endian
    shard-00000.ends           where each text ends: int64, tokens from the beginning of the shard
    shard-00000.json           what it was made of, while it is packed and after
    tokenizer/                 as the transformers library saves it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, RunDirectoryError

INDEX = "index.json"
TOKENIZER = "tokenizer"
VERSION = 1
_DTYPES = {"uint16": 2, "uint32": 4}
_CHUNK = 1 << 22
_END_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard: its file names without ending, what it holds, and the SHA-256 of its two files."""

    name: str
    tokens: int
    texts: int
    tokens_sha256: str
    ends_sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a directory holds. ``vocabulary``: size of the tokenizer; ``duplicates``: texts that were left out, as an
    equal one stands before them; ``signature``: of the files and the options that it was made of."""

    dtype: str
    vocabulary: int
    shards: tuple[Shard, ...]
    duplicates: int = 0
    signature: str = ""
    version: int = VERSION
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def texts(self) -> int:
        """Number of texts."""
        return sum(shard.texts for shard in self.shards)


def dtype_for(vocabulary: int) -> str:
    """The smallest type of so many tokens."""
    return "uint16" if vocabulary <= 2**16 else "uint32"


def read_index(directory: Path) -> Index:
    """Read the index of a packed data set. Raises ``ConfigError`` for a directory that has none or has one of a newer
    version."""
    path = directory / INDEX
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        begun = next(directory.glob("shard-*"), None) is not None
        why = "its packing has not ended: run workbench data pack again" if begun else "workbench data pack makes one"
        raise ConfigError(f"{directory} is no packed data set ({INDEX} is missing): {why}", field="dataset") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", field="dataset") from error
    try:
        version = int(found.pop("version"))
        if version > VERSION:
            raise ConfigError(
                f"{path} has version {version}, newer than {VERSION}: update the workbench", field="dataset"
            )
        shards = tuple(Shard(**shard) for shard in found.pop("shards"))
        names = ("dtype", "vocabulary", "duplicates", "signature")
        index = Index(shards=shards, version=version, more=found, **{name: found.pop(name) for name in names})
        _DTYPES[index.dtype]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not the index of a packed data set: {error!r}", field="dataset") from error
    return index


def write_index(directory: Path, index: Index) -> None:
    """Write it, whole or not at all."""
    data = asdict(index)
    write_whole(directory / INDEX, json.dumps({**data.pop("more"), **data}, indent=1).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it has its name only when it is complete and on disk."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def check_sizes(directory: Path, index: Index) -> dict[str, str]:
    """What is wrong with each shard whose files are missing or have another size; nothing is read."""
    wrong: dict[str, str] = {}
    for shard in index.shards:
        for ending, size in (("tokens", shard.tokens * _DTYPES[index.dtype]), ("ends", shard.texts * _END_BYTES)):
            path = directory / f"{shard.name}.{ending}"
            found = path.stat().st_size if path.exists() else None
            if found is None:
                wrong[shard.name] = f"{path.name} is missing"
            elif found != size:
                wrong[shard.name] = f"{path.name} has {found:,} bytes, and {size:,} were written"
    return wrong


def check_sums(directory: Path, index: Index, told: Callable[[int], None] = lambda _: None) -> dict[str, str]:
    """As ``check_sizes``, and the checksums: all files are read. ``told``: called with the number of shards that were
    checked."""
    wrong = check_sizes(directory, index)
    for number, shard in enumerate(index.shards):
        told(number)
        for ending, expected in (("tokens", shard.tokens_sha256), ("ends", shard.ends_sha256)):
            if shard.name in wrong:
                break
            path = directory / f"{shard.name}.{ending}"
            if sha256(path) != expected:
                wrong[shard.name] = f"{path.name} is damaged: its checksum is another than when it was written"
    told(len(index.shards))
    return wrong


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    return found.hexdigest()

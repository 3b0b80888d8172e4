"""The text of ``stdlib-llama``: the source files of the running Python's standard library.

Order, validation split and vocabulary depend on the files only, so every rank computes the same.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

#: directories that are skipped: installed packages, tests, and generated tables
_SKIPPED = {
    "__pycache__", "dist-packages", "site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data",
    "lib2to3", "idlelib", "turtledemo", "ensurepip",
}  # fmt: skip
_MIN_BYTES = 500_000
_VALIDATION_ONE_IN = 16  # one file in so many is for validation
FILE_TOKEN = "<|file|>"


@dataclass(frozen=True, kw_only=True)
class Text:
    """Contents of the training and the validation files, in an order that mixes packages."""

    train: Sequence[str]
    validation: Sequence[str]


def stdlib_directory() -> Path:
    """Directory of the standard library of this Python."""
    return Path(sysconfig.get_path("stdlib"))


def check_sources(directory: Path) -> None:
    """Raise ``ConfigError`` if ``directory`` does not hold the sources of a standard library."""
    found = sum((directory / name).stat().st_size for name in list_source_files(directory))
    if found < _MIN_BYTES:
        raise ConfigError(
            f"stdlib-llama needs the source files of the standard library, but {directory} of {sys.executable} has "
            f"only {found} bytes of them: use a Python that includes them (uv python install), or --recipe digits-vit",
            field="--recipe",
        )


def list_source_files(directory: Path) -> list[str]:
    """Relative paths (with ``/``) of the source files, ordered by a hash of the path."""
    found = []
    for folder, below, names in os.walk(directory):
        below[:] = [name for name in below if name not in _SKIPPED]
        found += [(Path(folder) / name).relative_to(directory).as_posix() for name in names if name.endswith(".py")]
    return sorted(found, key=_hash)


def read_sources(directory: Path, max_bytes: int) -> Text:
    """Read files until they hold ``max_bytes``; one file in 16, chosen by the hash of its path, is for validation."""
    train: list[str] = []
    validation: list[str] = []
    size = 0
    for name in list_source_files(directory):
        if size >= max_bytes:
            break
        content = (directory / name).read_text(encoding="utf-8", errors="replace")
        size += len(content)
        (validation if _hash(name) % _VALIDATION_ONE_IN == 0 else train).append(content)
    return Text(train=train, validation=validation)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


class Vocabulary:
    """A byte-pair encoding. Token 0 starts a file; 256 are single bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> Vocabulary:
        """Train an encoding with ``size`` tokens on ``texts``."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        # a newline with the indentation after it, a word with the space before it, or a run of punctuation
        pieces = Regex(r"\n *| ?[A-Za-z_]+| ?[0-9]+| ?[^\sA-Za-z0-9_]+|\s+")
        tokenizer: Any = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pieces, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[FILE_TOKEN],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Make the encoding that ``to_json`` wrote."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The encoding as text, in the format of the tokenizers library."""
        return self._tokenizer.to_str()

    def encode(self, text: str) -> list[int]:
        """Encode ``text`` as the beginning of a file."""
        return [0, *self._tokenizer.encode(text).ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens to text; tokens that start a file are left out."""
        return self._tokenizer.decode(list(tokens))

    def encode_files(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Encode and concatenate all files: one dimension, of the smallest unsigned type that holds ``size``."""
        import numpy as np

        dtype = np.min_scalar_type(self.size)
        parts = []
        for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False):
            parts += [np.zeros(1, dtype=dtype), np.asarray(encoding.ids, dtype=dtype)]
        return np.concatenate(parts)


def measure_bytes_per_token(vocabulary: Vocabulary, windows: torch.Tensor) -> float:
    """Mean number of bytes of text per token of ``windows``."""
    text = vocabulary.decode(windows.flatten().tolist())
    return len(text.encode()) / windows.numel()

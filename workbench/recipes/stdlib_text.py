"""The text of ``stdlib-llama``: source files of the standard library of the Python that runs it.

Order, split and vocabulary depend on the files alone, so every rank makes the same; nothing is written to disk.
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
    import torch

#: installed packages, tests and tables: not the standard library's own prose
_SKIPPED = {
    "__pycache__", "dist-packages", "site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data",
    "lib2to3", "idlelib", "turtledemo", "ensurepip",
}  # fmt: skip
_LEAST_BYTES = 500_000
_ONE_IN = 16  # files kept for validation
FILE_TOKEN = "<|file|>"


@dataclass(frozen=True, kw_only=True)
class Text:
    """Training and validation files (contents), in an order that mixes packages."""

    train: Sequence[str]
    validation: Sequence[str]


def root() -> Path:
    """Directory of the standard library of this Python."""
    return Path(sysconfig.get_path("stdlib"))


def check_sources(directory: Path) -> None:
    """``ConfigError`` when the directory does not hold the sources of a standard library."""
    found = sum((directory / name).stat().st_size for name in source_files(directory))
    if found < _LEAST_BYTES:
        raise ConfigError(
            f"stdlib-llama learns from the standard library's source files, but {directory} of {sys.executable} has "
            f"only {found} bytes of them: run with a Python that has them (uv python install), or use --recipe "
            "digits-vit",
            field="--recipe",
        )


def source_files(directory: Path) -> list[str]:
    """Relative paths (with ``/``) of the files, in the order of a hash of the path."""
    found = []
    for folder, below, names in os.walk(directory):
        below[:] = [name for name in below if name not in _SKIPPED]
        found += [(Path(folder) / name).relative_to(directory).as_posix() for name in names if name.endswith(".py")]
    return sorted(found, key=_hash)


def read(directory: Path, most_bytes: int) -> Text:
    """Read files up to about ``most_bytes``; one file in 16 is for validation, chosen by the hash of its path."""
    train: list[str] = []
    validation: list[str] = []
    size = 0
    for name in source_files(directory):
        if size >= most_bytes:
            break
        content = (directory / name).read_text(encoding="utf-8", errors="replace")
        size += len(content)
        (validation if _hash(name) % _ONE_IN == 0 else train).append(content)
    return Text(train=train, validation=validation)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


class Vocabulary:
    """A byte-pair encoding trained on ``texts``: ``size`` tokens, of which 0 begins a file and 256 are single bytes."""

    def __init__(self, texts: Sequence[str], size: int) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        # a newline with the indentation after it, a word with the space before it, or a run of signs
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
        self._tokenizer = tokenizer
        self.size = size

    def encode(self, text: str) -> list[int]:
        """Tokens of a file that begins with ``text``."""
        return [0, *self._tokenizer.encode(text).ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without file beginnings."""
        return self._tokenizer.decode(list(tokens))

    def windows(self, texts: Sequence[str], length: int) -> torch.Tensor:
        """All files one after another, cut into windows: [windows, length] int64."""
        import numpy as np
        import torch

        parts = []
        for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False):
            parts += [np.zeros(1, dtype=np.int64), np.asarray(encoding.ids, dtype=np.int64)]
        tokens = torch.from_numpy(np.concatenate(parts))
        count = len(tokens) // length
        return tokens[: count * length].view(count, length)


def bytes_per_token(vocabulary: Vocabulary, windows: torch.Tensor) -> float:
    """Mean number of bytes of text that a token of ``windows`` stands for."""
    text = vocabulary.decode(windows.flatten().tolist())
    return len(text.encode()) / windows.numel()

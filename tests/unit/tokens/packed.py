"""Packed data sets for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from workbench.tokens.packing import BYTES, Options, pack
from workbench.tokens.shards import Index


def write_lines(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def packed(folder: Path, texts: Sequence[str], *, name: str = "data", shard_mb: int = 64) -> Path:
    """Texts packed by bytes in one process."""
    file = write_lines(folder / f"{name}.jsonl", texts)
    pack(options(folder / name, file, shard_mb=shard_mb))
    return folder / name


def options(
    out: Path,
    *files: Path,
    processes: int = 1,
    shard_mb: int = 64,
    drop_duplicates: bool = False,
    tokenizer: str = BYTES,
) -> Options:
    return Options(tuple(map(str, files)), tokenizer, out, processes, shard_mb, drop_duplicates)


__all__ = ["Index", "options", "packed", "write_lines"]

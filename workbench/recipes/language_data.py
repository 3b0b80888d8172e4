"""Texts of files for a language model, as tokens. Importing this module imports no tensor library."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

#: one in so many sequences, the last ones, is for validation
VALIDATION_ONE_IN = 20
_BATCH = 256  # texts that are encoded at a time
_END = "<|end|>"

#: a text, or the messages of a chat
Record = str | list[dict[str, Any]]


def find_files(data: str) -> list[Path]:
    """The files that ``--data`` names: paths and patterns, separated by commas, in this order.

    Raises ``ConfigError`` for what names no file, and for an empty file.
    """
    files: list[Path] = []
    for part in (part.strip() for part in data.split(",")):
        path = Path(part).expanduser()
        found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            raise ConfigError(f"--data {part}: there is no such file", field="--data")
        files += found
    for file in files:
        if file.is_dir():
            raise ConfigError(f"--data {file} is a directory: name its files, as in {file}/*.jsonl", field="--data")
        if not file.stat().st_size:
            raise ConfigError(f"--data {file} is empty: leave it out", field="--data")
    return files


def records(file: Path) -> Iterator[Record]:
    """The texts and chats of a file: parquet by its column, json lines by their field ("text" or "messages"), any other
    file as one text. Raises ``ConfigError`` that names the line, or the columns, of what is none."""
    if file.suffix == ".parquet":
        yield from _of_parquet(file)
    elif file.suffix in (".jsonl", ".json", ".ndjson"):
        yield from _of_lines(file)
    else:
        try:
            yield file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"--data {file} is not UTF-8 text (byte {error.start}): give text, .jsonl or .parquet files",
                field="--data",
            ) from error


def _of_lines(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"--data {file}: line {number} is not JSON ({error}): each line must be one object", field="--data"
                ) from error
            if not isinstance(entry, dict):
                raise ConfigError(
                    f"--data {file}: line {number} is a {type(entry).__name__}: each line must be one object",
                    field="--data",
                )
            yield _record(entry, f"{file}: line {number}")


def _of_parquet(file: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"--data {file} is not a parquet file: {error}", field="--data") from error
    column = next((name for name in ("text", "messages") if name in opened.schema_arrow.names), None)
    if column is None:
        raise ConfigError(_no_text(str(file), opened.schema_arrow.names), field="--data")
    for batch in opened.iter_batches(columns=[column]):
        for value in batch.column(0).to_pylist():
            yield _record({column: value}, str(file))


def _record(entry: Mapping[str, Any], where: str) -> Record:
    text, messages = entry.get("text"), entry.get("messages")
    if isinstance(text, str):
        return text
    if isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ):
        return messages
    raise ConfigError(_no_text(where, list(entry)), field="--data")


def _no_text(where: str, fields: list[str]) -> str:
    return (
        f'--data {where} has no text: it needs "text", or "messages" with role and content, and has '
        f"{', '.join(fields) or 'nothing'}"
    )


def byte_tokenizer() -> Any:
    """A tokenizer of single bytes, and a token that ends a text: 257 tokens, as the transformers library saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # without token types: a causal model's generate would refuse them
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, clean_up_tokenization_spaces=False, model_input_names=names
    )


def encode(files: list[Path], tokenizer: Any) -> np.ndarray[Any, Any]:
    """All tokens of the files, one text after another, each followed by the token that ends a text: int32.

    Chats are written by the tokenizer's chat template, or as "role: content" lines where it has none.
    """
    import numpy as np

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts: list[np.ndarray[Any, Any]] = []
    texts: list[str] = []

    def flush() -> None:
        if texts:
            for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                parts.append(np.asarray(ids + end, dtype=np.int32))
            texts.clear()

    for file in files:
        for record in records(file):
            texts.append(record if isinstance(record, str) else _chat(record, tokenizer))
            if len(texts) >= _BATCH:
                flush()
    flush()
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def _chat(messages: list[dict[str, Any]], tokenizer: Any) -> str:
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


def cut_windows(tokens: np.ndarray[Any, Any], length: int, what: str, flag: str) -> torch.Tensor:
    """Split ``tokens`` into sequences, int64 [sequences, length]; what is left at the end is dropped.

    Raises ``ConfigError`` in the name of ``flag`` when ``what``, their text, is too short for one sequence.
    """
    import torch

    count = len(tokens) // length
    if not count:
        raise ConfigError(
            f"{what} has {len(tokens)} tokens, too few for one sequence of {length}: give more text, or "
            "shorter sequences",
            field=flag,
        )
    return torch.from_numpy(tokens[: count * length].astype("int64")).view(count, length)


def split_validation(windows: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences to train on, and the last ones, to validate on. ``ConfigError`` when there is only one."""
    if len(windows) < 2:
        raise ConfigError(
            f"--data has one sequence of --seq-len {length}, and two are needed, one of them for validation: give "
            f"more text, or --seq-len {length // 2}",
            field="--data",
        )
    held_out = max(1, len(windows) // VALIDATION_ONE_IN)
    return windows[:-held_out], windows[-held_out:]

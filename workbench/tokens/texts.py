"""Texts of files, and their tokens. Importing this module imports no tensor library.

A file is read whole or in parts: lines of a range of bytes, row groups of a range.
"""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

_BATCH = 256  # texts that are encoded at a time
_END = "<|end|>"
_LINES = (".jsonl", ".json", ".ndjson")
_COMPRESSED = {".zst": "zstd", ".gz": "gzip"}

#: a text, or the messages of a chat
Record = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """Of a file: the lines that begin at its bytes ``begin`` to ``end - 1``, or these row groups of a parquet file.
    ``end`` 0: the whole file."""

    file: str
    begin: int = 0
    end: int = 0


def find_files(data: str, flag: str = "--data") -> list[Path]:
    """The files that ``flag`` names: paths and patterns, separated by commas, in this order.

    Raises ``ConfigError`` for what names no file, and for an empty file.
    """
    files: list[Path] = []
    for part in (part.strip() for part in data.split(",")):
        path = Path(part).expanduser()
        found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            raise ConfigError(f"{flag} {part}: there is no such file", field=flag)
        files += found
    for file in files:
        if file.is_dir():
            raise ConfigError(f"{flag} {file} is a directory: name its files, as in {file}/*.jsonl", field=flag)
        if not file.stat().st_size:
            raise ConfigError(f"{flag} {file} is empty: leave it out", field=flag)
    return files


def kind_of(file: Path) -> str:
    """How a file is read: ``parquet``, ``lines`` (of JSON) or ``text``; what compresses it does not matter."""
    suffix = Path(file.stem).suffix if file.suffix in _COMPRESSED else file.suffix
    return "parquet" if suffix == ".parquet" else "lines" if suffix in _LINES else "text"


def is_compressed(file: Path) -> bool:
    """Whether a file is compressed as a whole (``.zst``, ``.gz``), so that it is read from its beginning."""
    return file.suffix in _COMPRESSED


def records(file: Path, part: Part | None = None, *, flag: str = "--data") -> Iterator[Record]:
    """The texts and chats of a file, or of a part of it: parquet by its column, json lines by their field ("text" or
    "messages"), any other file as one text. Raises ``ConfigError`` in the name of ``flag`` that names the line, or the
    columns, of what is none."""
    part = part or Part(str(file))
    kind = kind_of(file)
    if kind == "parquet":
        yield from _of_parquet(file, part, flag)
    elif kind == "lines":
        yield from _of_lines(file, part, flag)
    else:
        with io.TextIOWrapper(_opened(file, flag), encoding="utf-8") as opened:
            try:
                yield opened.read()
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{flag} {file} is not UTF-8 text (byte {error.start}): give text, .jsonl or .parquet files",
                    field=flag,
                ) from error


def _opened(file: Path, flag: str) -> io.BufferedReader:
    if not is_compressed(file):
        return file.open("rb")
    import pyarrow as pa

    try:
        return _Decompressed(file, _COMPRESSED[file.suffix], flag)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{flag} {file} cannot be read: {error}", field=flag) from error


class _Decompressed(io.BufferedReader):
    """The content of a compressed file."""

    def __init__(self, file: Path, how: str, flag: str) -> None:
        super().__init__(_Raw(file, how, flag), 1 << 20)


class _Raw(io.RawIOBase):
    def __init__(self, file: Path, how: str, flag: str) -> None:
        import pyarrow as pa

        self._file, self._flag = file, flag
        self._source = pa.input_stream(str(file), compression=how)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._source.read(len(buffer))
        except OSError as error:
            raise ConfigError(f"{self._flag} {self._file} is damaged: {error}", field=self._flag) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def _of_lines(file: Path, part: Part, flag: str) -> Iterator[Record]:
    with _opened(file, flag) as lines:
        place = part.begin
        if place:
            lines.seek(place - 1)
            place += len(lines.readline()) - 1  # the line that byte begin - 1 is in belongs to the part before
        for number, line in enumerate(lines, 1):
            if part.end and place >= part.end:
                return
            where = f"line {number}" if not part.begin else f"the line at byte {place}"
            place += len(line)
            if line.strip():
                yield _of_line(line, f"{flag} {file}: {where}", flag)


def _of_line(line: bytes, where: str, flag: str) -> Record:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error}): each line must be one object", field=flag) from error
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is a {type(entry).__name__}: each line must be one object", field=flag)
    return _record(entry, where, flag)


def _of_parquet(file: Path, part: Part, flag: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{flag} {file} is not a parquet file: {error}", field=flag) from error
    column = next((name for name in ("text", "messages") if name in opened.schema_arrow.names), None)
    if column is None:
        raise ConfigError(_no_text(f"{flag} {file}", opened.schema_arrow.names), field=flag)
    groups = range(part.begin, part.end or opened.num_row_groups)
    for batch in opened.iter_batches(columns=[column], row_groups=list(groups)):
        for value in batch.column(0).to_pylist():
            yield _record({column: value}, f"{flag} {file}", flag)


def _record(entry: Mapping[str, Any], where: str, flag: str) -> Record:
    text, messages = entry.get("text"), entry.get("messages")
    if isinstance(text, str):
        return text
    if isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ):
        return messages
    raise ConfigError(_no_text(where, list(entry)), field=flag)


def _no_text(where: str, fields: list[str]) -> str:
    return (
        f'{where} has no text: it needs "text", or "messages" with role and content, and has '
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


def encoded(texts: Iterator[Record], tokenizer: Any) -> Iterator[list[int]]:
    """The tokens of each text, and the token that ends a text, if the tokenizer has one.

    Chats are written by the tokenizer's chat template, or as "role: content" lines where it has none. The name of a
    special token in a text is text, and no such token.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for is_chat, group in groupby(texts, lambda record: not isinstance(record, str)):
        written = (as_text(record, tokenizer) for record in group)
        while waiting := list(islice(written, _BATCH)):
            # a template writes special tokens; in a text their names are words like others
            found = tokenizer(waiting, add_special_tokens=False, verbose=False, split_special_tokens=not is_chat)
            for ids in found["input_ids"]:
                yield ids + end


def encode(files: Sequence[Path], tokenizer: Any) -> np.ndarray[Any, Any]:
    """All tokens of the files, one text after another, each followed by the token that ends a text: int32."""
    import numpy as np

    texts = (record for file in files for record in records(file))
    parts = [np.asarray(ids, dtype=np.int32) for ids in encoded(texts, tokenizer)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def as_text(record: Record, tokenizer: Any) -> str:
    """A text as it is, a chat as it is trained: by the tokenizer's template, or as "role: content" lines."""
    if isinstance(record, str):
        return record
    if tokenizer.chat_template:
        text: str = tokenizer.apply_chat_template(record, tokenize=False)
        return text
    return "".join(f"{message['role']}: {message['content']}\n" for message in record)

"""Packs texts of files into shards of tokens, by several processes; what is packed is not packed again.

Input is cut into units of about equal size: whole files, lines of a large file, row groups of a parquet file. Each unit
becomes a shard, whose ``.json`` says when it is complete. A packing that was ended (Ctrl-C, a full disk, kill -9) goes
on with the units that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core import background
from workbench.errors import ConfigError, RunDirectoryError
from workbench.tokens import texts
from workbench.tokens.shards import (
    INDEX,
    TOKENIZER,
    Index,
    Shard,
    check_sizes,
    dtype_for,
    read_index,
    sha256,
    write_index,
    write_whole,
)
from workbench.tokens.texts import Part

BYTES = "bytes"
_MB = 1_000_000
_HASH_BYTES = 16

#: ``work(function, jobs)`` calls the function for each job, (number, arguments), and gives numbers and results
Work = Callable[..., Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class Options:
    """What to pack, and how. ``files``: paths and patterns; ``tokenizer``: a directory of the transformers library, or
    ``bytes``; ``shard_mb``: MB of input that become one shard; ``processes`` 0: one per core."""

    files: tuple[str, ...]
    tokenizer: str
    out: Path
    processes: int = 0
    shard_mb: int = 64
    drop_duplicates: bool = False


@dataclass(frozen=True)
class Progress:
    """``done`` of ``units`` units of a stage: ``comparing`` or ``packing``. ``kept``: how many were there before."""

    stage: str
    done: int
    units: int
    kept: int = 0


def pack(options: Options, told: Callable[[Progress], None] = lambda _: None) -> Index:
    """Pack, or go on packing, and return the index. ``told`` is called after each unit.

    Raises ``ConfigError`` for files or a tokenizer that cannot be read, and for a directory that holds another data
    set; ``RunDirectoryError`` where nothing can be written.
    """
    if options.shard_mb < 1 or options.processes < 0:
        raise ConfigError("--shard-mb is at least 1, --processes at least 0", field="--shard-mb")
    files = [file for name in options.files for file in texts.find_files(name, "FILES")]
    return _Packing(options, files, told).run()


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a directory, or that of single bytes (``bytes``). Raises ``ConfigError``."""
    if name == BYTES:
        return texts.byte_tokenizer()
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"--tokenizer {name}: there is no such directory; {BYTES} needs none", field="--tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(f"--tokenizer {name} cannot be read: {error}", field="--tokenizer") from error


def cut(files: Sequence[Path], unit_bytes: int) -> list[list[Part]]:
    """Cut files into units of about ``unit_bytes`` bytes of input, in order: small files together, large ones apart."""
    units: list[list[Part]] = [[]]
    room = unit_bytes
    for file in files:
        for part, size in _parts(file, unit_bytes):
            if units[-1] and size > room:
                units.append([])
                room = unit_bytes
            units[-1].append(part)
            room -= size
    return units


def _parts(file: Path, unit_bytes: int) -> Iterator[tuple[Part, int]]:
    size = file.stat().st_size
    kind = texts.kind_of(file)
    if kind == "parquet":
        yield from _row_groups(file, unit_bytes)
    elif kind == "lines" and size > unit_bytes and not texts.is_compressed(file):
        number = -(-size // unit_bytes)
        for begin, end in pairwise(size * each // number for each in range(number + 1)):
            yield Part(str(file), begin, end), end - begin
    else:
        yield Part(str(file)), size


def _row_groups(file: Path, unit_bytes: int) -> Iterator[tuple[Part, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = pq.ParquetFile(file).metadata
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"FILES {file} is not a parquet file: {error}", field="FILES") from error
    begin = size = 0
    for group in range(about.num_row_groups):
        size += about.row_group(group).total_byte_size
        if size >= unit_bytes or group == about.num_row_groups - 1:
            yield Part(str(file), begin, group + 1), size
            begin, size = group + 1, 0


class _Packing:
    """One packing. ``signature``: of everything that decides the tokens."""

    def __init__(self, options: Options, files: Sequence[Path], told: Callable[[Progress], None]) -> None:
        self.out = options.out
        self.told = told
        self.options = options
        self.tokenizer = load_tokenizer(options.tokenizer)
        self.units = cut(files, options.shard_mb * _MB)
        self.signature = self._signature(files)

    def _signature(self, files: Sequence[Path]) -> str:
        """Of the files by size and time, how they are cut, the tokenizer, and what is dropped."""
        about = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        backend = getattr(self.tokenizer, "backend_tokenizer", None)  # of a tokenizer in Python: none
        how = [backend.to_str()] if backend is not None else sorted(self.tokenizer.get_vocab().items())
        units = [[asdict(part) for part in unit] for unit in self.units]
        written = [self.tokenizer.chat_template, self.tokenizer.eos_token_id]
        words = [about, units, how, written, self.options.drop_duplicates]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()

    def run(self) -> Index:
        self._check_target()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.tokenizer.save_pretrained(self.out / TOKENIZER)
            with _workers(self.options, len(self.units)) as work:
                drop = self._duplicates(work) if self.options.drop_duplicates else [None] * len(self.units)
                shards = self._pack(drop, work)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.out} cannot be written: {error}; the same command goes on from here"
            ) from error
        index = Index(
            dtype=dtype_for(len(self.tokenizer)),
            vocabulary=len(self.tokenizer),
            shards=tuple(shard for shard in shards if shard.tokens),
            duplicates=sum(len(places) for places in drop if places is not None),
            signature=self.signature,
        )
        if not index.tokens:
            raise ConfigError("the files contain no text, so there is nothing to pack", field="FILES")
        write_index(self.out, index)
        return index

    def _check_target(self) -> None:
        other = "another data set (other files, tokenizer or options): choose another --out, or remove it"
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a file", field="--out")
        if (self.out / INDEX).exists() and read_index(self.out).signature != self.signature:
            raise ConfigError(f"--out {self.out} holds {other}", field="--out")
        if any(_about(path).get("signature") != self.signature for path in self.out.glob("shard-*.json")):
            raise ConfigError(f"--out {self.out} holds part of {other}", field="--out")

    def _duplicates(self, work: Work) -> list[Any]:
        """Of each unit the places of texts that are equal to an earlier one."""
        hashes: list[Any] = [None] * len(self.units)
        jobs = [(number, (unit,)) for number, unit in enumerate(self.units)]
        for done, (number, found) in enumerate(work(_hash_unit, jobs), 1):
            hashes[number] = np.frombuffer(found, dtype=f"V{_HASH_BYTES}")
            self.told(Progress("comparing", done, len(self.units)))
        _, first = np.unique(np.concatenate(hashes), return_index=True)
        is_first = np.zeros(sum(map(len, hashes)), dtype=bool)
        is_first[first] = True
        return [np.flatnonzero(~is_first[begin:end]) for begin, end in pairwise(np.cumsum([0, *map(len, hashes)]))]

    def _pack(self, drop: list[Any], work: Work) -> list[Shard]:
        units = self.units
        shards = {number: _packed(self.out, _name(number)) for number in range(len(units))}
        todo = [number for number, shard in shards.items() if shard is None]
        kept = len(units) - len(todo)
        self.told(Progress("packing", kept, len(units), kept))
        jobs = [(number, (units[number], drop[number], self.out, _name(number), self.signature)) for number in todo]
        for done, (number, shard) in enumerate(work(_pack_unit, jobs), kept + 1):
            shards[number] = shard
            self.told(Progress("packing", done, len(units), kept))
        return [shard for shard in shards.values() if shard is not None]


@contextmanager
def _workers(options: Options, units: int) -> Iterator[Work]:
    """Yields what gives the results of jobs as they end, in this process or in several."""
    processes = min(options.processes or len(os.sched_getaffinity(0)), units)
    if processes < 2:
        _start_worker(options.tokenizer, watch=False)
        yield lambda function, jobs: ((number, function(*job)) for number, job in jobs)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_worker, initargs=(options.tokenizer,)
    ) as pool:

        def work(
            function: Callable[..., Any], jobs: Sequence[tuple[int, tuple[Any, ...]]]
        ) -> Iterator[tuple[int, Any]]:
            futures = {pool.submit(function, *job): number for number, job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()

        try:
            yield work
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


#: the tokenizer of this worker
_TOKENIZER: list[Any] = []


def _start_worker(tokenizer: str, watch: bool = True) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _TOKENIZER[:] = [load_tokenizer(tokenizer)]
    if watch:
        warn = background.warner("a process that packs cannot tell when the one that started it ends")
        background.thread(_end_with_parent, name="watch-parent", failed=warn).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _hash_unit(unit: list[Part]) -> bytes:
    return b"".join(
        hashlib.blake2b(texts.as_text(record, _TOKENIZER[0]).encode(), digest_size=_HASH_BYTES).digest()
        for record in _records(unit)
    )


def _records(unit: list[Part]) -> Iterator[texts.Record]:
    for part in unit:
        yield from texts.records(Path(part.file), part, flag="FILES")


def _name(number: int) -> str:
    return f"shard-{number:05d}"


def _packed(out: Path, name: str) -> Shard | None:
    """A shard that is complete."""
    found = _about(out / f"{name}.json")
    if not found:
        return None
    shard = Shard(**found["shard"])
    index = Index(dtype=found["dtype"], vocabulary=0, shards=(shard,))
    return None if check_sizes(out, index) else shard


def _about(path: Path) -> dict[str, Any]:
    """What a shard was made of; empty for one that is not complete, or whose description was damaged."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _pack_unit(unit: list[Part], drop: Any, out: Path, name: str, signature: str) -> Shard:
    tokenizer = _TOKENIZER[0]
    dtype = dtype_for(len(tokenizer))
    dropped = set() if drop is None else set(drop.tolist())
    kept = (record for place, record in enumerate(_records(unit)) if place not in dropped)
    ends: list[int] = []
    written = 0
    paths = {ending: out / f"{name}.{ending}" for ending in ("tokens", "ends")}
    with paths["tokens"].open("wb") as file:
        for ids in texts.encoded(kept, tokenizer):
            file.write(np.asarray(ids, dtype=f"<{np.dtype(dtype).str[1:]}").tobytes())
            written += len(ids)
            ends.append(written)
        file.flush()
        os.fsync(file.fileno())
    write_whole(paths["ends"], np.asarray(ends, dtype="<i8").tobytes())
    sums = {f"{ending}_sha256": sha256(path) for ending, path in paths.items()}
    shard = Shard(name=name, tokens=written, texts=len(ends), **sums)
    about = {"signature": signature, "dtype": dtype, "shard": asdict(shard), "parts": [asdict(part) for part in unit]}
    write_whole(out / f"{name}.json", json.dumps(about, indent=1).encode())
    return shard

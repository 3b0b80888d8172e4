"""How fast a packed data set is read, against ``np.memmap`` alone, and how long a resume takes in a very long one.

Both sides read the same file in a shuffled order and make int64 batches; they take turns. ``python -m
tests.benchmarks.tokens``; ``--samples 195312 --length 512 --batch 32 --batches 1500``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.engine.data.dataset_source import DatasetSource
from workbench.tokens.dataset import TokenDataset
from workbench.tokens.permutation import Permutation
from workbench.tokens.shards import Index, Shard, sha256, write_index

LONG = 10**9
TURNS = 5


def make(directory: Path, samples: int, length: int) -> None:
    """A data set of one shard of random tokens, and one text."""
    tokens = np.random.default_rng(0).integers(0, 2**16, samples * length, dtype=np.uint16)
    tokens.tofile(directory / "shard-00000.tokens")
    np.array([len(tokens)], dtype="<i8").tofile(directory / "shard-00000.ends")
    sums = {f"{ending}_sha256": sha256(directory / f"shard-00000.{ending}") for ending in ("tokens", "ends")}
    shard = Shard(name="shard-00000", tokens=len(tokens), texts=1, **sums)
    write_index(directory, Index(dtype="uint16", vocabulary=2**16, shards=(shard,)))


def of_memmap(directory: Path, length: int, batch: int) -> Iterator[Any]:
    """Batches of a bare loop: one permutation as an array, rows of a memory map."""
    tokens = np.memmap(directory / "shard-00000.tokens", dtype=np.uint16, mode="r").reshape(-1, length)
    order = np.random.default_rng(0).permutation(len(tokens))
    for start in range(0, len(order) - batch + 1, batch):
        ids = torch.from_numpy(tokens[order[start : start + batch]].astype(np.int64))
        yield {"input_ids": ids, "labels": ids}


def rate(batches: Iterator[Any], number: int) -> float:
    """Tokens per second of this process's CPU time."""
    began, tokens = time.process_time(), 0
    for _ in range(number):
        tokens += next(batches)["input_ids"].numel()
    return tokens / (time.process_time() - began)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=195_312)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=1500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        make(directory, options.samples, options.length)
        dataset = TokenDataset(directory, options.length)
        rates: dict[str, list[float]] = {"memmap": [], "TokenDataset": []}
        for _ in range(TURNS):
            rates["memmap"].append(rate(of_memmap(directory, options.length, options.batch), options.batches))
            source = DatasetSource(dataset, options.batch, seed=0, shuffle=True)
            rates["TokenDataset"].append(rate(source.batches(0, 1), options.batches))
        median = {name: sorted(values)[TURNS // 2] for name, values in rates.items()}
        print("reader        million tokens per CPU-second")
        for name, value in median.items():
            print(f"{name:13s} {value / 1e6:8.0f}")
        print(f"TokenDataset / memmap: {median['TokenDataset'] / median['memmap']:.2f}x (goal: at least 0.8x)")
    began = time.perf_counter()
    found = Permutation(LONG, seed=0)[LONG // 2 : LONG // 2 + options.batch]
    print(f"first batch in the middle of {LONG:,} samples: {time.perf_counter() - began:.4f} s (goal: at most 0.1 s)")
    assert len(set(found)) == options.batch


if __name__ == "__main__":
    main()

"""The rank log and the store: cost of an append and of tailing, age of the newest row, time to open a long run.

    python tests/benchmarks/store.py [--seconds 10]

Every figure stands beside its goal, and reading beside what plain pyarrow takes for the same files in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from tests.benchmarks.machine import describe_machine
from workbench.core.records import DeviceSample, GradientStats, Record, StepRecord
from workbench.rundir.log import RankLogWriter, _TableFile, rank_directory
from workbench.telemetry.store import DISPLAY_ROWS, Store
from workbench.telemetry.thin import minmax_indices

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 20


def step(number: int, rank: int) -> StepRecord:
    return StepRecord(time=time.time(), step=number, rank=rank, loss=1 / number, lr=0.1, grad_sq=4.0, tokens=8,
                      step_time_ms=50.0, data_wait_ms=1.0)  # fmt: skip


def sample(number: int, rank: int) -> DeviceSample:
    return DeviceSample(time=time.time(), rank=rank, step=number, phase="forward_backward", cpu_percent=99.0,
                        rss_bytes=5 * 10**8, threads=3, net_sent_bytes=1, net_received_bytes=2, disk_read_bytes=3,
                        disk_write_bytes=4, device="cpu")  # fmt: skip


def gradient(number: int, rank: int, layer: int) -> GradientStats:
    return GradientStats(step=number, rank=rank, layer=f"model.layers.{layer}.mlp", scope="local", sharded="",
                         numel=4096, sum=1.0, sum_sq=2.0, max_abs=1.5, zero_count=1, nonfinite_count=0)  # fmt: skip


def append(folder: Path) -> None:
    """Time of the training thread per record, and of the whole process (the writer's thread with it)."""
    count = 20_000
    with RankLogWriter(folder, 0, capacity=count) as log:
        record = step(1, 0)
        log.append(record)
        log.flush()  # the first batch makes the file, and pyarrow imports what it needs
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(count // 2):
            log.append(record)
        alone = (time.perf_counter() - began) / (count // 2) * 1e6
        log.flush()
        both = (time.process_time() - cpu) / (count // 2) * 1e6
        began = time.perf_counter()
        for number in range(1, count // 2):
            log.append(step(number, 0))
        made = (time.perf_counter() - began) / (count // 2) * 1e6
    print(f"append a record: {alone:.2f} us; made and appended {made:.2f} us (goal < 20 us); written {both:.2f} us")


def tail(folder: Path, ranks: int, seconds: float) -> None:
    """Share of a core that reading 8 ranks twice a second takes, while they train 20 steps a second."""
    importlib.import_module("pandas")  # pyarrow imports it at the first read of a process
    writer = writing(folder, "train", ranks, seconds)
    store, costs = Store(folder, most=DISPLAY_ROWS), []
    cursors = dict.fromkeys(("steps", "devices", "gradients", "events"), 0)
    began, cpu = time.perf_counter(), time.process_time()
    while writer.poll() is None:
        before = time.process_time()
        store.refresh()
        for table in cursors:
            _, cursors[table] = store.since(table, cursors[table])
        costs.append(time.process_time() - before)
        time.sleep(0.5)
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    rows = sum(store.rows(table) for table in cursors)
    print(f"tail {ranks} ranks at 2 Hz: {share:.2%} of a core (goal < 3 %), {1e3 * statistics.median(costs):.1f} ms a "
          f"read, {rows} rows")  # fmt: skip


def many(folder: Path, ranks: int, seconds: float) -> None:
    """1,024 ranks, a step and a device sample each second: how old the newest row of each rank is when it is read."""
    writer = writing(folder, "many", ranks, seconds)
    store, ages, cursor, reads = Store(folder, most=DISPLAY_ROWS), [], 0, []
    cpu, began = time.process_time(), time.perf_counter()
    while writer.poll() is None:
        before = time.perf_counter()
        store.refresh()
        columns, cursor = store.since("steps", cursor)
        reads.append(time.perf_counter() - before)
        ages += (time.time() - columns["time"][columns["step"] > 1]).tolist()  # in the first, files are made
        time.sleep(max(0.0, 0.5 - reads[-1]))
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    print(f"tail {ranks} ranks at 1 Hz: newest row seen after {statistics.median(ages):.2f} s in the median, "
          f"{np.quantile(ages, 0.99):.2f} s at most for 99 % (goal < 1 s); {share:.0%} of a core, "
          f"{1e3 * max(reads):.0f} ms the longest read")  # fmt: skip


def bounded(folder: Path, ranks: int, rows: int) -> None:
    """What a display holds of a long run of many ranks."""
    write(folder, ranks, rows, batch=50)
    before = psutil.Process().memory_info().rss
    store = Store(folder, most=DISPLAY_ROWS)
    store.refresh()
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    held = sum(table.nbytes for table in store._tables.values()) / 2**20
    print(f"{ranks} ranks x {rows} steps and samples ({store.rows('steps') + store.rows('devices')} rows): a display "
          f"holds {store.table('steps')['step'].size} + {store.table('devices')['step'].size} rows, {held:.0f} MiB "
          f"(bounded by {DISPLAY_ROWS} rows a table); the process grew by {grown:.0f} MiB")  # fmt: skip


def million(folder: Path, batch: int) -> None:
    """8 ranks, 125,000 steps each: the store, and pyarrow alone."""
    write(folder, 8, 125_000, batch=batch, samples=False)
    files = sorted(folder.glob("rank-*/steps.arrow"))

    def ours() -> None:
        store = Store(folder)
        store.refresh()
        assert store.table("steps")["loss"].size == 10**6

    def plain() -> None:
        tables = []
        for file in files:
            with pa.ipc.open_stream(file) as reader:
                tables.append(reader.read_all())
        table = pa.concat_tables(tables)
        assert {name: table[name].to_numpy() for name in table.column_names}["loss"].size == 10**6

    pairs = [(timed(ours), timed(plain)) for _ in range(5)]
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"a million step records in batches of {batch}: {mine:.2f} s (goal < 0.5 s), pyarrow alone {other:.2f} s: "
          f"{ratio:.2f}x")  # fmt: skip


def thinned() -> None:
    x, y = np.arange(10**6), np.random.default_rng(0).normal(size=10**6)
    seconds = statistics.median(timed(lambda: minmax_indices(x, y, 1000)) for _ in range(5))
    print(f"a million points thinned to 1000 pixels: {1e3 * seconds:.0f} ms, {minmax_indices(x, y, 1000).size} points")


def timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def write(folder: Path, ranks: int, rows: int, *, batch: int, samples: bool = True) -> None:
    """Files as ranks leave them, without their threads."""
    kinds = {"steps": step, "devices": sample} if samples else {"steps": step}
    for rank in range(ranks):
        rank_directory(folder, rank).mkdir(parents=True)
        for table, make in kinds.items():
            file = _TableFile(rank_directory(folder, rank) / f"{table}.arrow", table)
            made: list[Record] = [make(number, rank) for number in range(1, rows + 1)]
            for first in range(0, rows, batch):
                file.append(made[first : first + batch])
            file.close()


def writing(folder: Path, kind: str, ranks: int, seconds: float) -> subprocess.Popen[bytes]:
    folder.mkdir()
    return subprocess.Popen([sys.executable, __file__, "--write", kind, str(folder), str(ranks), str(seconds)])


def write_live(kind: str, folder: Path, ranks: int, seconds: float) -> None:
    """The other process: ranks that train, or a file a rank and table to which a record is added each second."""
    end, number = time.monotonic() + seconds, 0
    if kind == "train":
        logs = [RankLogWriter(folder, rank) for rank in range(ranks)]
        while time.monotonic() < end:
            number += 1
            for log in logs:
                log.append(step(number, log.rank))
                if number % 10 == 0:
                    log.append(sample(number, log.rank))
                if number % 20 == 0:
                    for layer in range(LAYERS):
                        log.append(gradient(number, log.rank, layer))
            time.sleep(0.05)
        for log in logs:
            log.close()
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files = {}
    for rank in range(ranks):
        rank_directory(folder, rank).mkdir()
        for table in ("steps", "devices"):
            files[rank, table] = _TableFile(rank_directory(folder, rank) / f"{table}.arrow", table)
    due = time.monotonic()
    while time.monotonic() < end:
        number, due = number + 1, due + 1
        for (rank, table), file in files.items():
            file.append([step(number, rank) if table == "steps" else sample(number, rank)])
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        kind, folder, ranks, seconds = arguments.write
        write_live(kind, Path(folder), int(ranks), float(seconds))
        return
    print(describe_machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        append(folder / "append")
        tail(folder / "tail", 8, arguments.seconds)
        many(folder / "many", 1024, arguments.seconds)
        bounded(folder / "bounded", 1024, 600)
        million(folder / "million", batch=250)
        million(folder / "million-small", batch=5)
    thinned()


if __name__ == "__main__":
    main()

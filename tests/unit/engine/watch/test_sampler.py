"""The device sampler: right numbers, one warning for a lost GPU, no thread left, little cost."""

from __future__ import annotations

import ast
import gc
import math
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from tests.waiting import until
from workbench.core.records import DeviceSample
from workbench.engine.watch.host import gpu_reader, sampler
from workbench.engine.watch.host.gpu_reader import GpuReading, GpuUnavailableError
from workbench.engine.watch.host.sampler import DeviceSampler, Progress
from workbench.rundir.log import RankLogWriter


class Log:
    """Stands for a rank log: keeps what is appended."""

    def __init__(self) -> None:
        self.records: list[DeviceSample] = []
        self.events: list[tuple[str, str, object]] = []

    def append(self, record: DeviceSample) -> None:
        self.records.append(record)

    def event(self, kind: str, name: str, value: object = None, *, step: int = 0) -> None:
        self.events.append((kind, name, value))


class FakeGpu:
    name = "Fake GPU"

    def __init__(self, readings: int) -> None:
        self.left = readings
        self.closed = False

    def read(self) -> GpuReading:
        if not self.left:
            raise GpuUnavailableError("Fake GPU: fell off the bus")
        self.left -= 1
        return GpuReading(percent=50.0, memory_bytes=2.0**30, power_watts=100.0)

    def close(self) -> None:
        self.closed = True


def sampled(log: Log, samples: int, **options) -> None:
    """Samples until so many are taken."""
    options = {"rank": 3, "hz": 20, "device": "cpu", "progress": Progress(), **options}
    with DeviceSampler(log, **options):
        until(lambda: len(log.records) >= samples)


def more(log: Log, number: int = 1) -> None:
    """Wait until so many samples more were taken."""
    wanted = len(log.records) + number
    until(lambda: len(log.records) >= wanted)


def test_a_busy_process_on_a_machine_without_gpu() -> None:
    log, progress = Log(), Progress()
    progress.step, progress.phase = 7, "forward_backward"
    with DeviceSampler(log, rank=3, hz=5, device="cpu", progress=progress):
        deadline = time.monotonic() + 300
        while len(log.records) < 4 or not any(record.cpu_percent > 0 for record in log.records):
            sum(range(1000))
            assert time.monotonic() < deadline, "4 samples, in one of which the process was seen to be busy"
    assert not log.events
    last = log.records[-1]
    assert (last.rank, last.step, last.phase, last.device) == (3, 7, "forward_backward", "cpu")
    assert math.isfinite(last.cpu_percent) and last.cpu_percent >= 0
    assert last.rss_bytes > 5e6
    assert last.threads >= 2
    assert min(last.net_sent_bytes, last.net_received_bytes, last.disk_read_bytes, last.disk_write_bytes) >= 0
    assert math.isnan(last.gpu_percent)


def test_shared_memory_and_the_garbage_collector() -> None:
    from multiprocessing import shared_memory

    log = Log()
    block = shared_memory.SharedMemory(create=True, size=8 * 2**20)
    try:
        with DeviceSampler(log, rank=0, hz=20, device="cpu", progress=Progress()):
            more(log, 2)
            before = log.records[-1]
            block.buf[:] = bytes(block.size)  # touched, so that it is resident
            for _ in range(3):
                gc.collect()
            more(log, 2)
    finally:
        block.close()
        block.unlink()
    after = log.records[-1]
    assert after.shared_bytes - before.shared_bytes > 7 * 2**20
    assert before.gc_collections >= 0 and after.gc_collections - before.gc_collections >= 3
    assert after.gc_ms > before.gc_ms
    assert not [c for c in gc.callbacks if getattr(c, "__module__", "") == sampler.__name__], "undone"
    assert math.isnan(after.gpu_allocated_bytes)


@pytest.mark.parametrize(("initialised", "expected"), [(True, (10.0, 30.0, 20.0)), (False, None)])
def test_torchs_memory_is_read_only_where_cuda_is_in_use(
    monkeypatch: pytest.MonkeyPatch, initialised: bool, expected: tuple[float, ...] | None
) -> None:
    stats = {"allocated_bytes.all.current": 10, "reserved_bytes.all.current": 30, "allocated_bytes.all.peak": 20}
    cuda = SimpleNamespace(is_initialized=lambda: initialised, memory_stats=lambda: stats)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = sampler.read_allocator_memory()
    assert found == expected if expected else all(math.isnan(value) for value in found)


def test_counters_begin_at_zero_and_see_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is the machine's: others use it meanwhile."""
    counted = psutil.net_io_counters()
    monkeypatch.setattr(sampler.psutil, "net_io_counters", lambda: counted._replace(bytes_sent=10**15))
    log = Log()
    with DeviceSampler(log, rank=0, hz=20, device="cpu", progress=Progress()):
        more(log)
        with (tmp_path / "data").open("wb") as file:
            file.write(b"x" * 5_000_000)
            file.flush()
        more(log, 2)
    assert log.records[0].disk_write_bytes < 5_000_000
    assert log.records[0].net_sent_bytes == 0


def test_a_gpu_is_read_and_closed() -> None:
    log, gpu = Log(), FakeGpu(readings=1000)
    sampled(log, 2, gpu=gpu, device="cuda")
    assert log.records[-1].device == "Fake GPU"
    assert (log.records[-1].gpu_percent, log.records[-1].gpu_power_watts) == (50.0, 100.0)
    assert gpu.closed


def test_a_gpu_that_disappears_is_one_event_and_nan_from_then() -> None:
    log = Log()
    sampled(log, 5, gpu=FakeGpu(readings=2), device="cuda")
    assert log.events == [("gpu", "lost", "Fake GPU: fell off the bus")]
    values = [record.gpu_percent for record in log.records]
    assert values[:2] == [50.0, 50.0]
    assert len(values) > 3
    assert all(math.isnan(value) for value in values[2:])


def test_a_gpu_without_nvml_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str, environ: object) -> None:
        raise GpuUnavailableError("NVML cannot find cuda: no driver")

    monkeypatch.setattr(gpu_reader.NvmlGpu, "open", refuse)
    log = Log()
    sampled(log, 2, device="cuda")
    assert [event[1] for event in log.events] == ["gpu_unavailable"]
    assert log.records


def test_no_thread_is_left_and_stop_does_not_wait_for_the_next_sample(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with RankLogWriter(tmp_path, 0) as log:
        slow = DeviceSampler(log, rank=0, hz=0.001, device="cpu", progress=Progress())
        slow.start()
        slow.stop()  # though the next sample is due after 1000 s
        slow.stop()
    assert not set(threading.enumerate()) - before


def test_what_sampling_takes_is_counted() -> None:
    """That it is little: ``tests/benchmarks/monitor.py``."""
    log = Log()
    with DeviceSampler(log, rank=3, hz=20, device="cpu", progress=Progress()) as device_sampler:
        more(log, 5)
    assert device_sampler.samples >= 5 and device_sampler.progress.sampling_s > 0


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), AttributeError("a counter of tomorrow")])
def test_a_failure_ends_sampling_with_a_warning(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(sampler.psutil, "net_io_counters", fail)
    log = Log()
    with DeviceSampler(log, rank=3, hz=20, device="cpu", progress=Progress()):
        until(lambda: log.events)
    ((kind, name, why, *_),) = log.events
    assert (kind, name) == ("warning", "device_sampler_ended") and str(error) in why


@pytest.mark.parametrize("module", [sampler, gpu_reader], ids=["sampler", "gpu_reader"])
def test_the_sampler_imports_no_torch(module: ModuleType) -> None:
    tree = ast.parse(Path(module.__file__ or "").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("torch", "numpy", "transformers")]


def test_samples_reach_the_log(tmp_path: Path) -> None:
    from workbench.telemetry.store import Store

    with (
        RankLogWriter(tmp_path, 3) as log,
        DeviceSampler(log, rank=3, hz=20, device="cpu", progress=Progress()) as device_sampler,
    ):
        until(lambda: device_sampler.samples >= 2)
    store = Store(tmp_path)
    store.refresh()
    assert set(store.table("devices")["rank"]) == {3}

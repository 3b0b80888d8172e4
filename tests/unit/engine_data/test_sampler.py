"""The device sampler: right numbers, one warning for a lost GPU, no thread left, little cost."""

from __future__ import annotations

import ast
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.engine import sampler
from workbench.engine.sampler import DeviceSampler, GpuReading, GpuUnavailableError, NvmlGpu, Progress
from workbench.rank_log import RankLogWriter
from workbench.records import DeviceSample


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


def sampled(log: Log, seconds: float, **options) -> DeviceSampler:
    device_sampler = DeviceSampler(log, **{"rank": 3, "hz": 20, "device": "cpu", "state": Progress(), **options})
    with device_sampler:
        time.sleep(seconds)
    return device_sampler


def test_a_busy_process_on_a_machine_without_gpu() -> None:
    log, state = Log(), Progress()
    state.step, state.phase = 7, "forward_backward"
    with DeviceSampler(log, rank=3, hz=5, device="cpu", state=state):
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            sum(range(1000))
    assert not log.events
    assert 2 <= len(log.records) <= 5
    last = log.records[-1]
    assert (last.rank, last.step, last.phase, last.device) == (3, 7, "forward_backward", "cpu")
    assert 15 < last.cpu_percent < 250
    assert last.rss_bytes > 5e6
    assert last.threads >= 2
    assert min(last.net_sent_bytes, last.net_received_bytes, last.disk_read_bytes, last.disk_write_bytes) >= 0
    assert math.isnan(last.gpu_percent)


def test_counters_begin_at_zero_and_see_what_is_written(tmp_path: Path) -> None:
    log = Log()
    with DeviceSampler(log, rank=0, hz=20, device="cpu", state=Progress()):
        time.sleep(0.1)
        with (tmp_path / "data").open("wb") as file:
            file.write(b"x" * 5_000_000)
            file.flush()
        time.sleep(0.2)
    assert log.records[0].disk_write_bytes < 5_000_000
    assert log.records[0].net_sent_bytes < 10_000_000


def test_a_gpu_is_read_and_closed() -> None:
    log, gpu = Log(), FakeGpu(readings=1000)
    sampled(log, 0.2, gpu=gpu, device="cuda")
    assert log.records[-1].device == "Fake GPU"
    assert (log.records[-1].gpu_percent, log.records[-1].gpu_power_watts) == (50.0, 100.0)
    assert gpu.closed


def test_a_gpu_that_disappears_is_one_warning_and_nan_from_then() -> None:
    log = Log()
    sampled(log, 0.4, gpu=FakeGpu(readings=2), device="cuda")
    assert log.events == [("warning", "gpu_unavailable", "Fake GPU: fell off the bus")]
    values = [record.gpu_percent for record in log.records]
    assert values[:2] == [50.0, 50.0]
    assert len(values) > 3
    assert all(math.isnan(value) for value in values[2:])


def test_a_gpu_without_nvml_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str, environ: object) -> None:
        raise GpuUnavailableError("NVML cannot find cuda: no driver")

    monkeypatch.setattr(sampler.NvmlGpu, "open", refuse)
    log = Log()
    sampled(log, 0.25, device="cuda")
    assert [event[1] for event in log.events] == ["gpu_unavailable"]
    assert log.records


def test_no_thread_is_left_and_stop_is_quick(tmp_path: Path) -> None:
    before = threading.active_count()
    with RankLogWriter(tmp_path, 0) as log:
        slow = DeviceSampler(log, rank=0, hz=0.01, device="cpu", state=Progress())
        slow.start()
        started = time.monotonic()
        slow.stop()
        slow.stop()
        assert time.monotonic() - started < 0.5
    assert threading.active_count() == before


def test_a_sample_costs_less_than_two_milliseconds() -> None:
    device_sampler = sampled(Log(), 1.0)
    assert device_sampler.samples >= 5
    assert device_sampler.cost_s / device_sampler.samples < 0.002, "at 2 Hz: 0.4 % of a core"


def test_a_failure_of_the_system_ends_sampling_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(sampler.psutil, "net_io_counters", fail)
    log = Log()
    sampled(log, 0.1)
    assert [event[1] for event in log.events] == ["device_sampler_ended"]


class Nvml(SimpleNamespace):
    """NVML of a machine with three GPUs; handles are their numbers."""

    class NVMLError(Exception): ...

    class NVMLError_NotSupported(NVMLError): ...

    uuids = ("GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3")

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 2:
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.uuids[handle]

    def nvmlDeviceGetName(self, handle: object) -> str:
        return f"GPU number {handle}"

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> SimpleNamespace:
        return SimpleNamespace(gpu=30)

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> SimpleNamespace:
        return SimpleNamespace(used=123)

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        raise self.NVMLError_NotSupported


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda", "2", "2"),
        ("cuda:1", "2, 0", "0"),
        ("cuda", "GPU-bbbb", "1"),
        ("cuda:0", "GPU-cccc-3", "2"),
        ("cuda", "MIG-1234", "MIG-1234"),
    ],
)
def test_the_device_is_found_through_the_visible_ones(device: str, visible: str | None, name: str) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    gpu = NvmlGpu.open(device, environ, Nvml())
    assert gpu.name == f"GPU number {name}"
    reading = gpu.read()
    assert (reading.percent, reading.memory_bytes) == (30.0, 123.0)
    assert math.isnan(reading.power_watts), "not supported on this device"


@pytest.mark.parametrize("visible", ["", "7", "GPU-dddd", "0"])
def test_a_device_that_is_not_there_is_named(visible: str) -> None:
    device = "cuda:1" if visible == "0" else "cuda"
    with pytest.raises(GpuUnavailableError):
        NvmlGpu.open(device, {"CUDA_VISIBLE_DEVICES": visible}, Nvml())


def test_the_sampler_imports_no_torch() -> None:
    tree = ast.parse(Path(sampler.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("torch", "numpy", "transformers")]


def test_samples_reach_the_log(tmp_path: Path) -> None:
    from workbench.telemetry.store import Store

    with RankLogWriter(tmp_path, 3) as log:
        sampled(log, 0.3)  # type: ignore[arg-type]
    store = Store(tmp_path)
    store.refresh()
    assert set(store.table("devices")["rank"]) == {3}

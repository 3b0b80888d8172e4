"""NVML behind its seam: the right device, every figure, and NaN for what a device does not have."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from workbench.engine.watch.host.gpu_reader import GpuUnavailableError, NvmlGpu
from workbench.telemetry.throttle import throttle_reasons


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


class RichNvml(Nvml):
    """A GPU with everything."""

    def __init__(self) -> None:
        self.links = [(2000, 3000), (2500, 3250)]  # KiB sent and received, when they are asked for

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        return 321_500

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:
        return 61 + sensor

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: object) -> int:
        return 0x4 | 0x1

    def nvmlDeviceGetPcieThroughput(self, handle: object, counter: int) -> int:
        return {0: 12, 1: 34}[counter]

    def nvmlDeviceGetFieldValues(self, handle: object, fields: list[tuple[int, int]]) -> list[SimpleNamespace]:
        assert [number for number, _ in fields] == [138, 139]
        now = self.links.pop(0) if len(self.links) > 1 else self.links[0]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(ullVal=kib)) for kib in now]


def test_every_figure_of_a_gpu() -> None:
    gpu = NvmlGpu.open("cuda", {}, RichNvml())
    reading = gpu.read()
    assert (reading.power_watts, reading.temperature_c) == (321.5, 61)
    assert (reading.clock_mhz, reading.memory_clock_mhz) == (1980, 2619)
    assert (reading.pcie_sent_bytes_per_s, reading.pcie_received_bytes_per_s) == (12_000, 34_000)
    assert (reading.nvlink_sent_bytes, reading.nvlink_received_bytes) == (500 * 1024, 250 * 1024), "since it was opened"
    assert throttle_reasons(reading.throttle) == ["power cap"], "an idle GPU is not throttled"


def test_what_a_driver_does_not_have_is_nan() -> None:
    reading = NvmlGpu.open("cuda", {}, Nvml()).read()
    absent = (reading.temperature_c, reading.clock_mhz, reading.pcie_sent_bytes_per_s, reading.nvlink_sent_bytes)
    assert all(math.isnan(value) for value in absent) and reading.throttle == 0


def test_a_gpu_that_has_gone_says_so() -> None:
    nvml = RichNvml()
    gpu = NvmlGpu.open("cuda", {}, nvml)

    def gone(handle: object) -> None:
        raise nvml.NVMLError("GPU is lost")

    nvml.nvmlDeviceGetMemoryInfo = gone  # type: ignore[method-assign]
    with pytest.raises(GpuUnavailableError, match="GPU number 0: GPU is lost"):
        gpu.read()

"""Reading one GPU through NVML: no torch, no CUDA context, and nothing raised for what a device does not have."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from workbench.core.visible_devices import entries

# nvml.h: nvmlTemperatureSensors_t, nvmlClockType_t, nvmlPcieUtilCounter_t, field identifiers
_TEMPERATURE_GPU = 0
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_PCIE_SENT, _PCIE_RECEIVED = 0, 1
_NVLINK_SENT, _NVLINK_RECEIVED = 138, 139
_ALL_LINKS = 0xFFFFFFFF


class GpuReading(NamedTuple):
    """Utilisation in percent, memory in use on the device in bytes, power in watts, temperature in degrees Celsius,
    clocks in MHz; NaN where it cannot be read. ``throttle``: NVML's bit mask of reasons (``telemetry.throttle``).
    PCIe in bytes per second, NVLink in bytes since the reader was opened."""

    percent: float = math.nan
    memory_bytes: float = math.nan
    power_watts: float = math.nan
    temperature_c: float = math.nan
    clock_mhz: float = math.nan
    memory_clock_mhz: float = math.nan
    throttle: int = 0
    pcie_sent: float = math.nan
    pcie_received: float = math.nan
    nvlink_sent: float = math.nan
    nvlink_received: float = math.nan


class GpuUnavailableError(Exception):
    """The GPU cannot be found or read; the message says why."""


class GpuReader(Protocol):
    """Reads one GPU. ``read`` raises ``GpuUnavailableError`` when the device no longer answers."""

    name: str

    def read(self) -> GpuReading:
        """What the device does now; ``GpuUnavailableError`` once it is gone."""

    def close(self) -> None:
        """Let go of the device."""


class NvmlGpu:
    """One NVIDIA GPU, read through NVML. ``handle`` is NVML's; ``nvml`` the module ``pynvml`` or a stand-in."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        absent = (
            getattr(nvml, f"NVMLError_{name}", None) for name in ("NotSupported", "FunctionNotFound", "NoPermission")
        )
        self._absent = tuple(error for error in absent if error is not None)
        name = nvml.nvmlDeviceGetName(handle)
        self.name: str = name.decode() if isinstance(name, bytes) else name
        self._nvlink_first = self._nvlink()

    @classmethod
    def open(cls, device: str, environ: Mapping[str, str], nvml: Any = None) -> NvmlGpu:
        """The GPU that torch calls ``device`` ("cuda", "cuda:1") under ``CUDA_VISIBLE_DEVICES`` of ``environ``.

        Raises ``GpuUnavailableError`` without NVML or without that device.
        """
        if nvml is None:  # without a driver the module is there, and nvmlInit raises
            nvml = importlib.import_module("pynvml")
        index = int(device.partition(":")[2] or 0)
        try:
            nvml.nvmlInit()
            return cls(nvml, _handle(nvml, index, environ.get("CUDA_VISIBLE_DEVICES")))
        except nvml.NVMLError as error:
            raise GpuUnavailableError(f"NVML cannot find {device}: {error}") from error

    def read(self) -> GpuReading:
        """Raises ``GpuUnavailableError`` when the device has gone."""
        sent, received = self._nvlink()
        return GpuReading(
            percent=self._value("nvmlDeviceGetUtilizationRates", take=lambda rates: rates.gpu),
            memory_bytes=self._value("nvmlDeviceGetMemoryInfo", take=lambda memory: memory.used),
            power_watts=self._value("nvmlDeviceGetPowerUsage") / 1000,
            temperature_c=self._value("nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
            clock_mhz=self._value("nvmlDeviceGetClockInfo", _CLOCK_SM),
            memory_clock_mhz=self._value("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
            throttle=self._throttle(),
            pcie_sent=self._value("nvmlDeviceGetPcieThroughput", _PCIE_SENT) * 1000,
            pcie_received=self._value("nvmlDeviceGetPcieThroughput", _PCIE_RECEIVED) * 1000,
            nvlink_sent=sent - self._nvlink_first[0],
            nvlink_received=received - self._nvlink_first[1],
        )

    def _throttle(self) -> int:
        newer = "nvmlDeviceGetCurrentClocksEventReasons"
        name = newer if hasattr(self._nvml, newer) else "nvmlDeviceGetCurrentClocksThrottleReasons"
        mask = self._value(name)
        return 0 if math.isnan(mask) else int(mask)

    def _nvlink(self) -> tuple[float, float]:
        """Bytes of data that all NVLinks sent and received; NaN without NVLink."""
        fields = [(number, _ALL_LINKS) for number in (_NVLINK_SENT, _NVLINK_RECEIVED)]
        values = self._value("nvmlDeviceGetFieldValues", fields, take=lambda found: found)
        if not isinstance(values, list | tuple) and not hasattr(values, "__len__"):
            return math.nan, math.nan
        kib = [float(v.value.ullVal) if v.nvmlReturn == 0 else math.nan for v in values]
        return kib[0] * 1024, kib[1] * 1024

    def _value(self, function: str, *arguments: Any, take: Callable[[Any], Any] = float) -> Any:
        """What an NVML function says of the device; NaN where driver, library or device do not have it."""
        call = getattr(self._nvml, function, None)
        if call is None:
            return math.nan
        try:
            return take(call(self._handle, *arguments))
        except self._absent:
            return math.nan
        except self._nvml.NVMLError as error:
            raise GpuUnavailableError(f"{self.name}: {error}") from error

    def close(self) -> None:
        """Let go of NVML."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            raise GpuUnavailableError(f"{self.name}: {error}") from error


def _handle(nvml: Any, index: int, visible: str | None) -> Any:
    """NVML's handle of the ``index``-th visible device. Entries are numbers (PCI order) or UUIDs, maybe short."""
    chosen = entries(visible)
    if chosen is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    if index >= len(chosen):
        raise GpuUnavailableError(f"cuda:{index} is not among CUDA_VISIBLE_DEVICES={visible!r}")
    entry = chosen[index]
    if entry.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(entry))
    if entry.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        if (uuid.decode() if isinstance(uuid, bytes) else uuid).startswith(entry):
            return handle
    raise GpuUnavailableError(f"no GPU of this machine has the UUID {entry} of CUDA_VISIBLE_DEVICES={visible!r}")

"""Reads one GPU through NVML, without torch and without a CUDA context. Values that a device lacks are NaN."""

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
    """One reading of a GPU; NaN for what cannot be read.

    ``percent``: utilisation. ``memory_bytes``: memory in use on the whole device. ``throttle``: NVML's bit mask of
    reasons for reduced clocks (``telemetry.throttle``). NVLink bytes count from when the reader was opened.
    """

    percent: float = math.nan
    memory_bytes: float = math.nan
    power_watts: float = math.nan
    temperature_c: float = math.nan
    clock_mhz: float = math.nan
    memory_clock_mhz: float = math.nan
    throttle: int = 0
    pcie_sent_bytes_per_s: float = math.nan
    pcie_received_bytes_per_s: float = math.nan
    nvlink_sent_bytes: float = math.nan
    nvlink_received_bytes: float = math.nan


class GpuUnavailableError(Exception):
    """The GPU cannot be found, or no longer answers; the message says why."""


class GpuReader(Protocol):
    """What the device sampler needs from a GPU. ``name``: the product name of the device."""

    name: str

    def read(self) -> GpuReading:
        """Read the device. Raises ``GpuUnavailableError`` when it no longer answers."""

    def close(self) -> None:
        """Release the device. Raises ``GpuUnavailableError`` when it no longer answers."""


class NvmlGpu:
    """One NVIDIA GPU. ``nvml``: the module ``pynvml`` or a replacement for tests; ``handle``: NVML's device handle."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        unsupported = (
            getattr(nvml, f"NVMLError_{name}", None) for name in ("NotSupported", "FunctionNotFound", "NoPermission")
        )
        self._unsupported = tuple(error for error in unsupported if error is not None)
        name = nvml.nvmlDeviceGetName(handle)
        self.name: str = name.decode() if isinstance(name, bytes) else name
        self._nvlink_at_start = self._read_nvlink()

    @classmethod
    def open(cls, device: str, environ: Mapping[str, str], nvml: Any = None) -> NvmlGpu:
        """Open the GPU that torch calls ``device`` ("cuda", "cuda:1"), given ``CUDA_VISIBLE_DEVICES`` in ``environ``.

        Raises ``GpuUnavailableError`` when NVML or the device is missing.
        """
        if nvml is None:  # pynvml can be imported without a driver; nvmlInit then raises
            nvml = importlib.import_module("pynvml")
        index = int(device.partition(":")[2] or 0)
        try:
            nvml.nvmlInit()
            return cls(nvml, _find_handle(nvml, index, environ.get("CUDA_VISIBLE_DEVICES")))
        except nvml.NVMLError as error:
            raise GpuUnavailableError(f"NVML cannot find {device}: {error}") from error

    def read(self) -> GpuReading:
        """Read the device. Raises ``GpuUnavailableError`` when it no longer answers."""
        sent, received = self._read_nvlink()
        return GpuReading(
            percent=self._query("nvmlDeviceGetUtilizationRates", convert=lambda rates: rates.gpu),
            memory_bytes=self._query("nvmlDeviceGetMemoryInfo", convert=lambda memory: memory.used),
            power_watts=self._query("nvmlDeviceGetPowerUsage") / 1000,
            temperature_c=self._query("nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
            clock_mhz=self._query("nvmlDeviceGetClockInfo", _CLOCK_SM),
            memory_clock_mhz=self._query("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
            throttle=self._read_throttle_reasons(),
            pcie_sent_bytes_per_s=self._query("nvmlDeviceGetPcieThroughput", _PCIE_SENT) * 1000,
            pcie_received_bytes_per_s=self._query("nvmlDeviceGetPcieThroughput", _PCIE_RECEIVED) * 1000,
            nvlink_sent_bytes=sent - self._nvlink_at_start[0],
            nvlink_received_bytes=received - self._nvlink_at_start[1],
        )

    def _read_throttle_reasons(self) -> int:
        newer = "nvmlDeviceGetCurrentClocksEventReasons"
        name = newer if hasattr(self._nvml, newer) else "nvmlDeviceGetCurrentClocksThrottleReasons"
        mask = self._query(name)
        return 0 if math.isnan(mask) else int(mask)

    def _read_nvlink(self) -> tuple[float, float]:
        """Bytes sent and received over all NVLinks; NaN without NVLink."""
        fields = [(number, _ALL_LINKS) for number in (_NVLINK_SENT, _NVLINK_RECEIVED)]
        values = self._query("nvmlDeviceGetFieldValues", fields, convert=lambda found: found)
        if not isinstance(values, list | tuple) and not hasattr(values, "__len__"):
            return math.nan, math.nan
        kib = [float(v.value.ullVal) if v.nvmlReturn == 0 else math.nan for v in values]
        return kib[0] * 1024, kib[1] * 1024

    def _query(self, function: str, *arguments: Any, convert: Callable[[Any], Any] = float) -> Any:
        """Call an NVML function on the device; NaN when driver, library or device do not support it."""
        call = getattr(self._nvml, function, None)
        if call is None:
            return math.nan
        try:
            return convert(call(self._handle, *arguments))
        except self._unsupported:
            return math.nan
        except self._nvml.NVMLError as error:
            raise GpuUnavailableError(f"{self.name}: {error}") from error

    def close(self) -> None:
        """Shut NVML down. Raises ``GpuUnavailableError`` when it no longer answers."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            raise GpuUnavailableError(f"{self.name}: {error}") from error


def _find_handle(nvml: Any, index: int, visible: str | None) -> Any:
    """NVML's handle of the ``index``-th visible device.

    ``visible``: value of ``CUDA_VISIBLE_DEVICES``; its entries are numbers (in PCI order) or UUIDs, possibly shortened.
    """
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

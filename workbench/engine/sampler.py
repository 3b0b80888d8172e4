"""What a rank uses, sampled by a thread: processor, memory, network, disk, and its GPU where there is one.

Nothing here imports torch; a sample costs well under a millisecond of one core.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import psutil

from workbench.rank_log import RankLogWriter
from workbench.records import DeviceSample

#: processor ticks are 10 ms, so a share of less time than this says nothing
FIRST_SAMPLE_S = 0.1


class Progress:
    """Where training is; the trainer sets it, the sampler reads it. Assigning an attribute is atomic."""

    __slots__ = ("phase", "step")

    def __init__(self) -> None:
        self.step = 0
        self.phase = "starting"


class GpuReading(NamedTuple):
    """Utilisation in percent, memory in use on the device in bytes, power in watts; NaN where it cannot be read."""

    percent: float = math.nan
    memory_bytes: float = math.nan
    power_watts: float = math.nan


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
        name = nvml.nvmlDeviceGetName(handle)
        self.name: str = name.decode() if isinstance(name, bytes) else name

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
        """What NVML says of the device now."""
        nvml, handle = self._nvml, self._handle
        return GpuReading(
            percent=self._value(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            memory_bytes=self._value(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            power_watts=self._value(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        )

    def _value(self, read: Any) -> float:
        try:
            return float(read())
        except self._nvml.NVMLError_NotSupported:
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
    entries = [entry.strip() for entry in (visible or "").split(",") if entry.strip()]
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    if index >= len(entries):
        raise GpuUnavailableError(f"cuda:{index} is not among CUDA_VISIBLE_DEVICES={visible!r}")
    entry = entries[index]
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


@dataclass(frozen=True, slots=True)
class _Counters:
    """Byte counters: the host's network, this process' disk traffic. Zeros where the system has none."""

    net_sent: int
    net_received: int
    disk_read: int
    disk_write: int

    @classmethod
    def now(cls, process: psutil.Process) -> _Counters:
        net = psutil.net_io_counters()
        disk = process.io_counters() if hasattr(process, "io_counters") else None
        return cls(
            net_sent=net.bytes_sent if net else 0,
            net_received=net.bytes_recv if net else 0,
            disk_read=disk.read_bytes if disk else 0,
            disk_write=disk.write_bytes if disk else 0,
        )


class DeviceSampler:
    """Appends a ``DeviceSample`` to ``log`` at ``hz`` per second from ``start()`` to ``stop()``.

    ``device`` is torch's name of the rank's device ("cpu", "cuda", "cuda:1"). ``gpu`` reads it (default: NVML). A GPU
    that cannot be read is one ``warning`` event, and NaN from then on. ``cost_s`` is the processor time spent so far.
    """

    def __init__(
        self,
        log: RankLogWriter,
        *,
        rank: int,
        hz: float,
        device: str,
        state: Progress,
        gpu: GpuReader | None = None,
    ) -> None:
        self.log = log
        self.rank = rank
        self.period_s = 1 / hz
        self.device = device
        self.state = state
        self.samples = 0
        self.cost_s = 0.0
        self._gpu = gpu
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin sampling in a daemon thread; the first sample comes after ``FIRST_SAMPLE_S``."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name=f"device-sampler-{self.rank}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; may be called twice, or without ``start``."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> DeviceSampler:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        self._open_gpu()
        try:
            self._sample_until_ended()
        except (OSError, psutil.Error) as error:  # no more descriptors, no /proc: the run goes on without samples
            self.log.event("warning", "device_sampler_ended", str(error), step=self.state.step)
        finally:
            self._close_gpu()

    def _sample_until_ended(self) -> None:
        process = psutil.Process(os.getpid())
        process.cpu_percent()  # the first call only sets the beginning of the interval
        first = _Counters.now(process)
        due = time.monotonic() + min(FIRST_SAMPLE_S, self.period_s)
        self._ended.wait(due - time.monotonic())
        while not self._ended.is_set():
            self.log.append(self._sample(process, first))
            self.samples += 1
            self.cost_s = time.thread_time()
            due = max(due + self.period_s, time.monotonic())
            self._ended.wait(due - time.monotonic())

    def _sample(self, process: psutil.Process, first: _Counters) -> DeviceSample:
        with process.oneshot():
            counters = _Counters.now(process)
            cpu_percent, rss, threads = process.cpu_percent(), process.memory_info().rss, process.num_threads()
        gpu = self._read_gpu()
        return DeviceSample(
            time=time.time(),
            rank=self.rank,
            step=self.state.step,
            phase=self.state.phase,
            cpu_percent=cpu_percent,
            rss_bytes=rss,
            threads=threads,
            net_sent_bytes=counters.net_sent - first.net_sent,
            net_received_bytes=counters.net_received - first.net_received,
            disk_read_bytes=counters.disk_read - first.disk_read,
            disk_write_bytes=counters.disk_write - first.disk_write,
            device=self.device,
            gpu_percent=gpu.percent,
            gpu_memory_bytes=gpu.memory_bytes,
            gpu_power_watts=gpu.power_watts,
        )

    def _open_gpu(self) -> None:
        try:
            if self._gpu is None and self.device.startswith("cuda"):
                self._gpu = NvmlGpu.open(self.device, os.environ)
        except GpuUnavailableError as error:
            self._warn(error)
        if self._gpu is not None:
            self.device = self._gpu.name

    def _read_gpu(self) -> GpuReading:
        if self._gpu is None:
            return GpuReading()
        try:
            return self._gpu.read()
        except GpuUnavailableError as error:
            self._warn(error)
            self._gpu = None
            return GpuReading()

    def _close_gpu(self) -> None:
        gpu, self._gpu = self._gpu, None
        if gpu is None:
            return
        try:
            gpu.close()
        except GpuUnavailableError as error:
            self._warn(error)

    def _warn(self, error: GpuUnavailableError) -> None:
        self.log.event("warning", "gpu_unavailable", str(error), step=self.state.step)

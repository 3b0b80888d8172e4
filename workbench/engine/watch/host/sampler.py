"""What a rank uses, sampled by a thread: processor, memory, network, disk, and its GPU where there is one.

Nothing here imports torch; a sample costs well under a millisecond of one core.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import psutil

from workbench.core.records import DeviceSample
from workbench.engine.watch.host.gpu_reader import GpuReader, GpuReading, GpuUnavailableError, NvmlGpu
from workbench.rundir.log import RankLogWriter

#: processor ticks are 10 ms, so a share of less time than this says nothing
FIRST_SAMPLE_S = 0.1


class Progress:
    """Where training is; the trainer sets it, the sampler reads it, and says what processor time it has used in
    ``sampling_s``. Assigning an attribute is atomic."""

    __slots__ = ("phase", "sampling_s", "step")

    def __init__(self) -> None:
        self.step = 0
        self.phase = "starting"
        self.sampling_s = 0.0


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


class Collections:
    """Counts what Python's garbage collector does, and how long training stands still for it."""

    def __init__(self) -> None:
        self.count = 0
        self.ms = 0.0
        self._began = 0.0

    def start(self) -> None:
        """Begin to count."""
        gc.callbacks.append(self._heard)

    def stop(self) -> None:
        """Count no more."""
        if self._heard in gc.callbacks:
            gc.callbacks.remove(self._heard)

    def _heard(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began:
            self.count += 1
            self.ms += (time.perf_counter() - self._began) * 1e3


def torch_memory() -> tuple[float, float, float]:
    """Bytes that torch's caching allocator has given out, holds, and had given out at most; NaN where this process has
    not initialised CUDA (asking would)."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return math.nan, math.nan, math.nan
    try:
        memory = torch.cuda.memory_stats()
    except RuntimeError:  # the device has gone: NVML, or training, says so
        return math.nan, math.nan, math.nan
    names = ("allocated_bytes.all.current", "reserved_bytes.all.current", "allocated_bytes.all.peak")
    allocated, reserved, peak = (float(memory.get(name, math.nan)) for name in names)
    return allocated, reserved, peak


class DeviceSampler:
    """Appends a ``DeviceSample`` to ``log`` at ``hz`` per second from ``start()`` to ``stop()``.

    ``device`` is torch's name of the rank's device ("cpu", "cuda", "cuda:1"). ``gpu`` reads it (default: NVML). A GPU
    that cannot be found is one ``warning`` event, one that no longer answers an event ``gpu lost``, and its columns are
    NaN from then on.
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
        self._gpu = gpu
        self._collections = Collections()
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
        self._collections.start()
        try:
            self._sample_until_ended()
        except (OSError, psutil.Error) as error:  # no more descriptors, no /proc: the run goes on without samples
            self.log.event("warning", "device_sampler_ended", str(error), step=self.state.step)
        finally:
            self._collections.stop()
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
            self.state.sampling_s = time.thread_time()
            due = max(due + self.period_s, time.monotonic())
            self._ended.wait(due - time.monotonic())

    def _sample(self, process: psutil.Process, first: _Counters) -> DeviceSample:
        with process.oneshot():
            counters = _Counters.now(process)
            cpu_percent, memory, threads = process.cpu_percent(), process.memory_info(), process.num_threads()
        gpu = self._read_gpu()
        allocated, reserved, peak = torch_memory()
        return DeviceSample(
            time=time.time(),
            rank=self.rank,
            step=self.state.step,
            phase=self.state.phase,
            cpu_percent=cpu_percent,
            rss_bytes=memory.rss,
            threads=threads,
            net_sent_bytes=counters.net_sent - first.net_sent,
            net_received_bytes=counters.net_received - first.net_received,
            disk_read_bytes=counters.disk_read - first.disk_read,
            disk_write_bytes=counters.disk_write - first.disk_write,
            device=self.device,
            gpu_percent=gpu.percent,
            gpu_memory_bytes=gpu.memory_bytes,
            gpu_power_watts=gpu.power_watts,
            shared_bytes=getattr(memory, "shared", 0),
            gc_collections=self._collections.count,
            gc_ms=self._collections.ms,
            gpu_allocated_bytes=allocated,
            gpu_reserved_bytes=reserved,
            gpu_peak_bytes=peak,
            gpu_temperature_c=gpu.temperature_c,
            gpu_clock_mhz=gpu.clock_mhz,
            gpu_memory_clock_mhz=gpu.memory_clock_mhz,
            gpu_throttle=gpu.throttle,
            gpu_pcie_sent_bytes_per_s=gpu.pcie_sent,
            gpu_pcie_received_bytes_per_s=gpu.pcie_received,
            gpu_nvlink_sent_bytes=gpu.nvlink_sent,
            gpu_nvlink_received_bytes=gpu.nvlink_received,
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
            self.log.event("gpu", "lost", str(error), step=self.state.step)
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

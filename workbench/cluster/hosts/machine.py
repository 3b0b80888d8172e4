"""Describes this host: cores, cgroup limits, GPUs (by NVML), free ports. Never touches CUDA."""

from __future__ import annotations

import functools
import os
import re
import socket
from pathlib import Path
from typing import Any

import psutil

from workbench.cluster.base.ports import reserve
from workbench.cluster.hosts.placement import Device, Host, visible_devices
from workbench.errors import ClusterError

_CGROUP = Path("/sys/fs/cgroup")


def describe_host() -> Host:
    """This host as ``placement`` wants it; a CUDA_VISIBLE_DEVICES of this process is respected."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Host(
        cores=cores,
        physical=min(psutil.cpu_count(logical=False) or len(cores), len(cores)),
        cpu_limit=_cpu_limit(),
        devices=visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus()),
    )


def visible_device_ids() -> list[str]:
    """CUDA_VISIBLE_DEVICES entries to keep warm processes for; none without GPUs."""
    return [device.id for device in visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus())]


@functools.cache
def _nvml() -> Any:
    """The initialised NVML module, or None where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _gpus() -> list[Device]:
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return []
    return [device for index in range(count) if (device := _gpu(nvml, index)) is not None]


def _gpu(nvml: Any, index: int) -> Device | None:
    """One GPU; None when it does not answer, for example because it fell off the bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        return None
    return Device(
        id=str(index),
        name=name if isinstance(name, str) else name.decode(),
        memory_bytes=memory,
        used_by=_computing(nvml, handle),
    )


def _computing(nvml: Any, handle: Any) -> tuple[int, ...]:
    """Pids of processes on a device that are neither this process nor its children."""
    try:
        pids = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except nvml.NVMLError:
        return ()
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return tuple(sorted(pids - ours))


def _cpu_limit() -> float | None:
    """The CPU limit of the cgroup in cores (v2 ``cpu.max``, v1 quota and period), or None."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)


def oom_kills() -> int:
    """How often the out-of-memory killer ended a process of this cgroup (0 if unknown)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    total = 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            file = _CGROUP / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            file = _CGROUP / "memory" / path.lstrip("/") / "memory.oom_control"
        else:
            continue
        try:
            found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found[1]) if found else 0
    return total


def reserve_master_port(address: str, wanted: int | None) -> socket.socket:
    """Reserve a TCP port for the users' own process groups (see ``ports.reserve``): the one wanted, else a free one.

    ``ClusterError`` when the one wanted is taken.
    """
    if wanted is not None and not 1 <= wanted <= 65535:
        raise ClusterError(
            f"--master-port {wanted} is not a port: use 1024 to 65535, or leave the flag out for a free one"
        )
    try:
        return reserve(address, wanted or 0)
    except OSError as error:
        raise ClusterError(
            f"--master-port {wanted} on {address} cannot be used ({error.strerror}){_holder(wanted)}: "
            "pass another one, or leave the flag out for a free one"
        ) from error


def _holder(port: int | None) -> str:
    """`` , held by process 123 (python)`` where that can be seen."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return ""
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            if connection.pid is None:
                return ""
            return f", held by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""

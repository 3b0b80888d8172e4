"""Decides which rank gets which device and cores, from the description of a host. Pure functions.

``machine.describe_host`` describes this host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.visible_devices import entries, is_uuid
from workbench.errors import ConfigError, format_ranks

CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU: ``id`` is its CUDA_VISIBLE_DEVICES entry; ``used_by`` are pids of processes that compute on it."""

    id: str
    name: str = "GPU"
    memory_bytes: int = 0
    used_by: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a host offers: logical ``cores`` this process may use, how many ``physical``, a cgroup's ``cpu_limit``
    in cores (None: no limit), and its ``devices``, already narrowed to what the user made visible."""

    cores: tuple[int, ...]
    physical: int
    cpu_limit: float | None = None
    devices: tuple[Device, ...] = ()

    @property
    def usable_cores(self) -> int:
        """The number of cores whose time may be used."""
        limit = len(self.cores) if self.cpu_limit is None else int(self.cpu_limit)
        return max(1, min(len(self.cores), limit))


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What one rank is bound to. ``cores`` empty: not pinned. ``threads`` goes into OMP_NUM_THREADS."""

    rank: int
    local_rank: int
    device: str
    cores: tuple[int, ...]
    threads: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The bindings of all ranks, and warnings about them."""

    bindings: tuple[Binding, ...]
    warnings: tuple[str, ...] = ()


def visible_devices(setting: str | None, found: Sequence[Device]) -> tuple[Device, ...]:
    """The devices that a CUDA_VISIBLE_DEVICES setting (None: unset) leaves visible, in its order.

    Reading ends at the first entry that names no device. Entries that are UUIDs stay as the user wrote them.
    """
    chosen = entries(setting)
    if chosen is None:
        return tuple(found)
    by_id = {device.id: device for device in found}
    taken: list[Device] = []
    for entry in chosen:
        device = Device(id=entry) if is_uuid(entry) else by_id.get(str(int(entry)))
        if device is None:
            break
        taken.append(dataclasses.replace(device, id=entry))
    return tuple(taken)


def default_ranks(host: Host) -> int:
    """The default number of ranks: one per GPU, else one per physical core, at least 2 and at most 4."""
    if host.devices:
        return len(host.devices)
    return max(2, min(4, host.physical, host.usable_cores))


def choose_devices(host: Host, wanted: Sequence[str] | str | None) -> tuple[Device, ...]:
    """The devices to bind to: all (None), none (``"cpu"``), or those named; ``ConfigError`` for an unknown one."""
    if wanted is None:
        return host.devices
    if wanted == CPU:
        return ()
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    known = {device.id: device for device in host.devices}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"unknown device {', '.join(unknown)}: visible are {', '.join(known) or 'none'}; "
            "change devices, or CUDA_VISIBLE_DEVICES before the kernel starts",
            field="devices",
        )
    return tuple(known[name] for name in names)


def place(n: int, host: Host, devices: Sequence[Device] | None = None) -> Placement:
    """Bind ``n`` ranks to the host's devices (or those given), else to a fair share of its cores."""
    if n < 1:
        raise ConfigError(f"-n {n}: at least one rank is required", field="--nproc-per-node")
    chosen = host.devices if devices is None else tuple(devices)
    if chosen and n > len(chosen):
        gpus = "1 GPU is" if len(chosen) == 1 else f"{len(chosen)} GPUs are"
        ids = ", ".join(device.id for device in chosen)
        raise ConfigError(
            f"{n} ranks, but {gpus} available ({ids}), and NCCL allows one rank per device: pass "
            f"-n {len(chosen)}, or run the ranks on CPU cores (%dist_up -n {n} --devices cpu, "
            'Session.up(..., devices="cpu"), or an empty CUDA_VISIBLE_DEVICES)',
            field="--nproc-per-node",
        )
    shares = _share_cores(n, host)
    bindings = tuple(
        Binding(
            rank=rank,
            local_rank=rank,
            device=chosen[rank].id if chosen else CPU,
            cores=shares[rank],
            threads=len(shares[rank]) or max(1, host.usable_cores // n),
        )
        for rank in range(n)
    )
    return Placement(bindings=bindings, warnings=tuple(_warnings(n, host, chosen)))


def _share_cores(n: int, host: Host) -> list[tuple[int, ...]]:
    """Contiguous equal shares; none is pinned when there are too few cores or a cgroup limits time, not cores."""
    count = len(host.cores)
    if n > count or host.usable_cores < count:
        return [()] * n
    return [host.cores[rank * count // n : (rank + 1) * count // n] for rank in range(n)]


def _warnings(n: int, host: Host, chosen: Sequence[Device]) -> list[str]:
    said: list[str] = []
    for rank, device in enumerate(chosen[:n]):
        if device.used_by:
            pids = ", ".join(map(str, device.used_by))
            said.append(
                f"device {device.id} ({device.name}) is in use by process {pids}: rank {rank} shares its memory "
                "and time with it"
            )
    if not chosen and n > host.usable_cores:
        said.append(
            f"{n} ranks on {host.usable_cores} core{'s' if host.usable_cores != 1 else ''}: they share "
            f"cores, one thread each and not pinned, so steps are slower than with -n {host.usable_cores}"
        )
    return said


def environment(binding: Binding, *, world_size: int, master_addr: str, master_port: int) -> dict[str, str]:
    """The variables of one rank, as torchrun names them, plus its share of cores and its device."""
    shared = str(binding.threads)
    return {
        "RANK": str(binding.rank),
        "LOCAL_RANK": str(binding.local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
        "OMP_NUM_THREADS": shared,
        "MKL_NUM_THREADS": shared,
        "OPENBLAS_NUM_THREADS": shared,
        "CUDA_VISIBLE_DEVICES": "" if binding.device == CPU else binding.device,
    }


def parse_ranks(text: str, n: int) -> list[int]:
    """``"0,2"``, ``"0-3"``, ``"1,4-6"``, ``"all"`` -> ranks, ascending; ``ConfigError`` outside ``0 .. n - 1``."""
    if text.strip().lower() == "all":
        return list(range(n))
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(
                f"-t {text!r} is not a list of ranks: write -t 0,2 or -t 0-{n - 1} or -t all", field="--targets"
            )
        ranks.update(range(int(first), int(last if dash else first) + 1))
    outside = sorted(rank for rank in ranks if rank >= n)
    if outside:
        raise ConfigError(
            f"{format_ranks(outside)} in -t {text!r}, but {n} ranks are up: 0 to {n - 1}", field="--targets"
        )
    return sorted(ranks)

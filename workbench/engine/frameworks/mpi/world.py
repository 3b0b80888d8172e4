"""MPI's world of the ranks that are up, and collectives in it that a person or another rank's end can break.

A process can begin with MPI once, and its world stays what it was: so a rank does when it starts, and ranks of this
framework are all started anew where others could be replaced.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from workbench.engine.agree.shared_slots import PeerLostError
from workbench.engine.collectives import record
from workbench.errors import ClusterError, CollectiveReleasedError

_PROGRAM = Path(__file__).with_name("process_manager.py")
#: what MPI reads where it begins; programs that a rank starts must not find it
_VARIABLES = ("PMI_FD", "PMI_RANK", "PMI_SIZE")
#: looks without a pause at a request that is under way, then seconds between two looks
_LOOKS, _PAUSE_S = 50, 0.00005
#: seconds between looks whether the others are alive
_ALIVE_EVERY_S = 0.5
_SHARED_MEMORY = "/dev/shm/mpich_shm_"


@dataclass(frozen=True)
class World:
    """``pids``: of all its ranks."""

    pids: tuple[int, ...]


_world: list[World] = []
#: the process manager, on rank 0
_manager: list[subprocess.Popen[bytes]] = []


def form(rank: int, ranks: int, directory: str | Path, name: str) -> None:
    """Make this process rank ``rank`` of the ``ranks`` of ``MPI.COMM_WORLD``, unless it is in a world already.

    ``directory`` and ``name``: where these ranks meet, and no others. Collective; waits until all ranks came.
    """
    if _world:
        return
    if MPI.Is_initialized():
        raise ClusterError("this rank has begun with MPI by itself: run %dist_down, then %dist_up --framework mpi")
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    path = f"/proc/self/fd/{directory_fd}/{name}.sock"  # as a path of a socket has 107 bytes at most
    try:
        connection, pids = _begin(path, ranks) if rank == 0 else _meet(path, rank)
    finally:
        os.close(directory_fd)
    with connection, _environment(PMI_FD=connection.fileno(), PMI_RANK=rank, PMI_SIZE=ranks):
        MPI.Init_thread()
        connection.detach()  # it is MPI's from now on, and its end tells the manager of this rank's
    if MPI.COMM_WORLD.size != ranks:
        raise ClusterError(
            f"{MPI.Get_library_version().splitlines()[0]} made a world of {MPI.COMM_WORLD.size} ranks in place of "
            f"{ranks}: ranks need MPICH 4 or later, which 'workbench env create mpi' brings"
        )
    _world.append(World(pids))
    waited(MPI.COMM_WORLD.Ibarrier())
    _forget_shared_memory()


def _begin(path: str, ranks: int) -> tuple[socket.socket, tuple[int, ...]]:
    """On rank 0, as ``_meet``: starts the process manager."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # of ranks that have ended
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(ranks)
        given = [listener.fileno(), theirs.fileno()]
        command = [sys.executable, "-I", "-S", str(_PROGRAM), *map(str, given), str(ranks)]
        _manager[:] = [subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=given)]
    pids = _introduced(ours, 0)
    if not pids:
        raise ClusterError(f"the process manager of MPI ended with {_manager[0].wait()}: see the log of rank 0")
    return ours, pids


def _meet(path: str, rank: int) -> tuple[socket.socket, tuple[int, ...]]:
    """The connection to the process manager, and the process ids of all ranks, when all have come."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        # rank 0 may not be there yet, or this be the manager of ranks that have just ended
        with suppress(FileNotFoundError, ConnectionError):
            connection.connect(path)
            pids = _introduced(connection, rank)
            if pids:
                return connection, pids
        connection.close()
        time.sleep(0.005)


def _introduced(connection: socket.socket, rank: int) -> tuple[int, ...]:
    """Tell who this is; the process ids of all ranks when all have come, or nothing where the manager ended."""
    connection.sendall(f"hello {rank} {os.getpid()}\n".encode())
    line = b""
    while not line.endswith(b"\n") and (byte := connection.recv(1)):  # what follows is MPI's
        line += byte
    return tuple(map(int, line.split()[1:]))


@contextmanager
def _environment(**values: int) -> Iterator[None]:
    assert set(values) == set(_VARIABLES)
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _forget_shared_memory() -> None:
    """Remove the names of the memory that ranks share, which all of them have mapped: a rank that is killed leaves
    nothing behind then."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if _SHARED_MEMORY in line}
    for path in mapped:
        Path(path).unlink(missing_ok=True)


def group_of(ranks: int) -> MPI.Intracomm:
    """A communicator of the first ``ranks`` ranks of the world, for one training. Collective between them.

    Raises ``ClusterError`` where the world has fewer.
    """
    world = MPI.COMM_WORLD
    if ranks == 1:
        return MPI.COMM_SELF
    if ranks > world.size:
        raise ClusterError(f"MPI's world has {world.size} ranks, not {ranks}: run %dist_down, then %dist_up -n {ranks}")
    if ranks == world.size:
        made, request = world.Idup()
        waited(request)
        return made
    return world.Create_group(world.group.Incl(list(range(ranks))))


def all_reduce(comm: MPI.Intracomm, tensor: torch.Tensor, *, counted: bool = True) -> None:
    """Sum ``tensor`` over the ranks of ``comm``, in place. ``counted``: it is one of the training's collectives,
    recorded as such. bf16 and fp16, which MPI does not know, are added in fp32."""
    if comm.size > 1:
        begin = lambda array: comm.Iallreduce(MPI.IN_PLACE, array)  # noqa: E731
        _communicate("all_reduce", tensor, begin, counted=counted)


def broadcast(comm: MPI.Intracomm, tensor: torch.Tensor) -> None:
    """Give all ranks of ``comm`` what rank 0 has in ``tensor``."""
    if comm.size > 1:
        _communicate("broadcast", tensor, lambda array: comm.Ibcast(array, root=0), counted=True)


def _communicate(
    kind: str, tensor: torch.Tensor, begin: Callable[[np.ndarray[Any, Any]], MPI.Request], *, counted: bool
) -> None:
    seen = record.current()

    def run(*called: Any, **options: Any) -> None:
        dtype = torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.dtype
        host = tensor.detach().to("cpu", dtype).contiguous()
        array = host.numpy()
        waited(begin(array), array)
        if host.data_ptr() != tensor.data_ptr():
            tensor.copy_(host)

    if seen is not None and counted:
        options = {"src": 0} if kind == "broadcast" else {}
        seen.run(kind, run, (tensor,), options)
    else:
        run()


#: requests that were given up, with what MPI may still write to
_abandoned: list[tuple[MPI.Request, Any]] = []


def waited(request: MPI.Request, held: Any = None) -> None:
    """Wait until a request is done, looking again and again: an interrupt, and a release from a collective that cannot
    end, break it. ``held``: what MPI writes to. ``PeerLostError`` when another rank has ended."""
    looks, looked = 0, time.monotonic()
    try:
        with _polling() as seen:
            while not request.Test():
                looks += 1
                if looks <= _LOOKS:
                    os.sched_yield()
                    continue
                time.sleep(_PAUSE_S)
                if seen is not None and seen.is_released:
                    raise CollectiveReleasedError(f"{seen.released}; this rank was released from MPI")
                if time.monotonic() - looked > _ALIVE_EVERY_S:
                    looked = time.monotonic()
                    _check_alive()
    except BaseException:
        _abandoned.append((request, held))
        raise


@contextmanager
def _polling() -> Iterator[record.Record | None]:
    """While entered, who releases ranks from collectives knows that this one looks at the record."""
    seen = record.current()
    if seen is None:
        yield None
        return
    seen.polls = True
    try:
        yield seen
    finally:
        seen.polls = False


def _check_alive() -> None:
    for rank, pid in enumerate(_world[0].pids):
        if not Path(f"/proc/{pid}").exists():
            raise PeerLostError(f"rank {rank} has ended while this one waited for it in MPI")

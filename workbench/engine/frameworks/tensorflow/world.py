"""TensorFlow's server of each rank, and collectives between them that a person or another rank's end can break.

A process makes its server when TensorFlow first computes, with the addresses of all others, and keeps it: so a rank
does when it starts, and ranks of this framework are all started anew where others could be replaced. There is no
coordination service of TensorFlow's, which would end a process whose peer has died: the project itself tells.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch
from tensorflow.core.protobuf import cluster_pb2, tensorflow_server_pb2
from tensorflow.python.eager import context

from workbench.core import background
from workbench.engine.agree.shared_slots import PeerLostError
from workbench.engine.collectives import record
from workbench.engine.frameworks.tensorflow.arrays import to_numpy, to_torch
from workbench.errors import ClusterError, CollectiveReleasedError

_JOB, _HOST = "worker", "127.0.0.1"
#: seconds between looks at a collective that is under way
_PAUSE_S = 0.02
#: seconds between looks whether the others are alive
_ALIVE_EVERY_S = 0.5
#: bytes of an element -> the type as which it is broadcast, bit by bit
_CARRIED = {8: torch.int64, 4: torch.int32, 2: torch.float16}


@dataclass(frozen=True)
class World:
    """``pids``: of all its ranks."""

    rank: int
    pids: tuple[int, ...]


_world: list[World] = []


def form(rank: int, ranks: int, directory: str | Path, name: str) -> None:
    """Make this process rank ``rank`` of ``ranks`` that reach each other, unless it is that already.

    ``directory`` and ``name``: where these ranks meet, and no others. Collective; waits until all ranks came. Raises
    ``ClusterError`` in a process where TensorFlow has computed already.
    """
    if _world:
        return
    if context.context()._initialized:
        raise ClusterError("TensorFlow has computed in this rank before the ranks met: run %dist_down, then %dist_up")
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    with socket.socket() as held:
        # no other process is given this port meanwhile, and TensorFlow can listen on it, which sets this option too
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((_HOST, 0))
        every = _introduced(rank, ranks, directory, name, held.getsockname()[1])
        _serve(rank, [port for port, _ in every])
    _world.append(World(rank, tuple(pid for _, pid in every)))


def _serve(rank: int, ports: list[int]) -> None:
    here = context.context()
    here.configure_collective_ops(
        collective_leader=f"/job:{_JOB}/replica:0/task:0", device_filters=(f"/job:{_JOB}/task:{rank}",)
    )
    cluster = cluster_pb2.ClusterDef()
    job = cluster.job.add()
    job.name = _JOB
    for number, port in enumerate(ports):
        job.tasks[number] = f"{_HOST}:{port}"
    served = tensorflow_server_pb2.ServerDef(cluster=cluster, job_name=_JOB, task_index=rank, protocol="grpc")
    served.default_session_config.CopyFrom(here.config)
    here.enable_collective_ops(served)
    here.ensure_initialized()


def _introduced(rank: int, ranks: int, directory: str | Path, name: str, port: int) -> list[tuple[int, int]]:
    """Port and process id of every rank, when all have come."""
    own = f"{rank} {port} {os.getpid()}"
    if ranks == 1:
        return _read(own)
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    path = f"/proc/self/fd/{directory_fd}/{name}.sock"  # as a path of a socket has 107 bytes at most
    try:
        return _gathered(path, ranks, own) if rank == 0 else _met(path, own)
    finally:
        os.close(directory_fd)


def _read(text: str) -> list[tuple[int, int]]:
    rows = sorted(tuple(map(int, line.split())) for line in text.splitlines())
    return [(port, pid) for _, port, pid in rows]


def _gathered(path: str, ranks: int, own: str) -> list[tuple[int, int]]:
    """On rank 0: wait for the others, and tell all of all. One that comes again takes the place of the one before."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # of ranks that have ended
    told: dict[str, tuple[socket.socket | None, str]] = {"0": (None, own)}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(ranks)
        while len(told) < ranks:
            connection, _ = listener.accept()
            line = _line(connection)
            if line:
                told[line.partition(" ")[0]] = connection, line
    os.unlink(path)
    text = "\n".join(line for _, line in told.values())
    for waiting, _ in told.values():
        if waiting is not None:
            with waiting:
                waiting.sendall(text.replace("\n", ";").encode() + b"\n")
    return _read(text)


def _met(path: str, own: str) -> list[tuple[int, int]]:
    while True:
        # rank 0 may not be there yet, or this be that of ranks that have just ended
        with socket.socket(socket.AF_UNIX) as connection, suppress(FileNotFoundError, ConnectionError):
            connection.connect(path)
            connection.sendall(f"{own}\n".encode())
            line = _line(connection)
            if line:
                return _read(line.replace(";", "\n"))
        time.sleep(0.005)


def _line(connection: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n") and (byte := connection.recv(4096)):
        found += byte
    return found.decode().strip()


class Group:
    """The first ``ranks`` ranks of the world, for one training; all of them make it together.

    ``key``: a number that no other training of these ranks has.
    """

    def __init__(self, ranks: int, key: int) -> None:
        size = len(_world[0].pids)
        if ranks > size:
            raise ClusterError(
                f"there are {size} ranks of TensorFlow, not {ranks}: run %dist_down, then %dist_up -n {ranks}"
            )
        self.size, self._key = ranks, key
        self._worker = _Worker(_world[0].pids[:ranks])

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum ``tensor`` over the ranks, in place."""

        def begin(array: np.ndarray[Any, Any]) -> Any:
            return tf.raw_ops.CollectiveReduceV2(
                input=array, merge_op="Add", final_op="Id", ordering_token=[], **self._about("sum", array)
            )

        if self.size > 1:
            self._communicate("all_reduce", tensor, begin)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Give all ranks what rank 0 has in ``tensor``."""

        def begin(array: np.ndarray[Any, Any]) -> Any:
            about = self._about("broadcast", array)
            if _world[0].rank == 0:
                return tf.raw_ops.CollectiveBcastSendV2(input=array, **about)
            return tf.raw_ops.CollectiveBcastRecvV2(shape=array.shape, T=array.dtype, **about)

        if self.size > 1:
            carried = _CARRIED.get(tensor.element_size())
            bits = tensor.detach().to(torch.int32) if carried is None else tensor.detach().view(carried)
            self._communicate("broadcast", bits, begin)
            if carried is None:
                tensor.copy_(bits)

    def _about(self, kind: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        """What tells a collective from others: ranks have the same ones, of the same shapes, in the same order."""
        instance = zlib.crc32(f"{kind} {array.dtype} {array.shape}".encode()) & 0x7FFFFFFF
        return {
            "group_size": self.size,
            "group_key": self._key,
            "instance_key": instance,
            "communication_hint": "ring",
        }

    def _communicate(self, kind: str, tensor: torch.Tensor, begin: Callable[[Any], Any]) -> None:
        seen = record.current()

        def run(*called: Any, **options: Any) -> None:
            array = np.array(to_numpy(tensor))
            found = self._worker.result_of(lambda: begin(array))
            tensor.copy_(to_torch(found))

        if seen is not None:
            seen.run(kind, run, (tensor,), {"src": 0} if kind == "broadcast" else {})
        else:
            run()

    def close(self) -> None:
        """Let its thread end, unless it waits for ranks that do not come."""
        self._worker.close()


class _Worker:
    """A thread that waits in TensorFlow, where nothing could break the wait of the main thread. ``pids``: of the ranks
    that it waits for."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._found: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        background.thread(self._work, name="tensorflow-collectives", failed=self._raise).start()

    def _work(self) -> None:
        while (compute := self._asked.get()) is not None:
            try:
                self._found = compute()
            except Exception as error:  # raised in the main thread
                self._raise(error)
            else:
                self._done.set()

    def _raise(self, error: BaseException) -> None:
        """Let ``result_of`` raise it."""
        self._error = error
        self._done.set()

    def result_of(self, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns. An interrupt, and a release from a collective that cannot end, break the wait.
        ``PeerLostError`` when another rank has ended."""
        self._done.clear()
        self._error = None
        self._asked.put(compute)
        looked = time.monotonic()
        with _polling() as seen:
            while not self._done.wait(_PAUSE_S):
                if seen is not None and seen.is_released:
                    raise CollectiveReleasedError(f"{seen.released}; this rank was released from TensorFlow")
                if time.monotonic() - looked > _ALIVE_EVERY_S:
                    looked = time.monotonic()
                    self._check_alive()
        if self._error is not None:
            self._check_alive()
            raise self._error
        return self._found

    def _check_alive(self) -> None:
        for rank, pid in enumerate(self._pids):
            if not Path(f"/proc/{pid}").exists():
                raise PeerLostError(f"rank {rank} has ended while this one waited for it in TensorFlow")

    def close(self) -> None:
        self._asked.put(None)


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

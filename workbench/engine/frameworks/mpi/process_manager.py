"""The process manager of an MPI world: lets ranks that nobody started together meet, and keeps the keys by which they
connect. A program of its own, which needs Python's standard library only: ``process_manager.py LISTENER FIRST RANKS``,
with the file descriptors of a listening socket and of the connection to the rank that started it.

Usually ``mpiexec`` is one. It starts the ranks itself, which here are forked from a process that has imported what they
need. MPI asks little of it: a rank whose ``PMI_FD`` is a connection asks in lines of text (PMI 1, Balaji et al.,
"PMI: A Scalable Parallel Process-Management Interface for Extreme-Scale Systems", EuroMPI 2010).

A rank first sends ``hello RANK PID``. When all have, each is sent ``pids PID PID ...`` in the order of ranks, and
begins with MPI. The program ends when all connections are closed, so at the latest when all ranks have ended.
"""

from __future__ import annotations

import selectors
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

_LIMITS = "kvsname_max=256 keylen_max=64 vallen_max=1024"
_NAME = "kvsname=world"


@dataclass(eq=False)
class _Peer:
    """A connection. ``rank``: None before it said so."""

    connection: socket.socket
    received: bytes = b""
    rank: int | None = None
    pid: int = 0

    def lines(self) -> list[str]:
        """Complete lines that came. ``EOFError`` when it was closed."""
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        *complete, self.received = (self.received + data).split(b"\n")
        return [line.decode() for line in complete]

    def send(self, line: str) -> None:
        """Send a line; that its rank has ended, its connection will tell."""
        try:
            self.connection.sendall(f"{line}\n".encode())
        except ConnectionError:
            return


@dataclass
class World:
    """What ``ranks`` ranks have said so far. ``answer`` is a pure function of it, and the only one that changes it."""

    ranks: int
    keys: dict[str, str] = field(default_factory=dict)
    waiting: int = 0

    def answer(self, asked: Mapping[str, str]) -> tuple[str, bool]:
        """The answer to a request of PMI 1, "" while others are waited for; and whether it is for all ranks."""
        command = asked.get("cmd", "")
        if command == "put":
            self.keys[asked["key"]] = asked["value"]
        if command == "barrier_in":
            self.waiting += 1
            if self.waiting < self.ranks:
                return "", False
            self.waiting = 0
            return "cmd=barrier_out rc=0", True
        found = {
            "init": "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1",
            "get_maxes": f"cmd=maxes rc=0 {_LIMITS}",
            "get_appnum": "cmd=appnum rc=0 appnum=0",
            "get_my_kvsname": f"cmd=my_kvsname rc=0 {_NAME}",
            "get_universe_size": f"cmd=universe_size rc=0 size={self.ranks}",
            "put": "cmd=put_result rc=0",
            "get": self._value(asked.get("key", "")),
            "finalize": "cmd=finalize_ack rc=0",
        }
        return found.get(command, f"cmd={command}_result rc=-1 msg=unknown"), False

    def _value(self, key: str) -> str:
        if key == "PMI_process_mapping":  # all ranks are on one host
            return f"cmd=get_result rc=0 value=(vector,(0,1,{self.ranks}))"
        return f"cmd=get_result rc=0 value={self.keys[key]}" if key in self.keys else "cmd=get_result rc=1"


class Manager:
    """Serves one world to ``first``, and to those that connect to ``listener``, until none is connected any more."""

    def __init__(self, listener: socket.socket, first: socket.socket, ranks: int) -> None:
        self._listener, self._world = listener, World(ranks)
        self._members: dict[int, _Peer] = {}
        self._open = 0
        self._began = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._admit(first)

    def run(self) -> None:
        """Serve."""
        while self._open:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._admit(self._listener.accept()[0])
                else:
                    self._serve(key.data)

    def _admit(self, connection: socket.socket) -> None:
        self._open += 1
        self._selector.register(connection, selectors.EVENT_READ, _Peer(connection))

    def _serve(self, peer: _Peer) -> None:
        try:
            for line in peer.lines():
                if peer.rank is None and self._began:
                    raise EOFError  # it came too late
                if peer.rank is None:
                    self._welcome(peer, line)
                else:
                    self._answer(peer, line)
        except EOFError:
            self._selector.unregister(peer.connection)
            peer.connection.close()
            self._open -= 1
            if peer.rank is not None and self._members.get(peer.rank) is peer:
                del self._members[peer.rank]

    def _welcome(self, peer: _Peer, line: str) -> None:
        _, rank, pid = line.split()
        peer.rank, peer.pid = int(rank), int(pid)
        self._members[peer.rank] = peer
        if len(self._members) == self._world.ranks:
            self._began = True
            self._selector.unregister(self._listener)
            self._listener.close()
            pids = " ".join(str(self._members[each].pid) for each in sorted(self._members))
            for each in list(self._members.values()):
                each.send(f"pids {pids}")

    def _answer(self, peer: _Peer, line: str) -> None:
        answer, is_for_all = self._world.answer(dict(word.split("=", 1) for word in line.split() if "=" in word))
        for each in (list(self._members.values()) if is_for_all else [peer]) if answer else []:
            each.send(answer)


def main() -> None:
    """The program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the ranks
    listener, first, ranks = map(int, sys.argv[1:])
    Manager(socket.socket(fileno=listener), socket.socket(fileno=first), ranks).run()


if __name__ == "__main__":
    main()

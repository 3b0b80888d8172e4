"""Agreed control: every rank applies a command at the same step boundary.

Rank 0 looks at the size of ``control.jsonl`` (a ``stat``) when a step begins and tells all ranks up to which byte to
read when it ends. Every rank then reads the same bytes, hence the same commands, before the same step. A number of
rank 0's rides along: what the next step's watching is, so that all ranks watch the same steps. Ranks of one host are
told through a mapped file (``shared_slots``). Between hosts what is told comes with the sum that ranks make in each
step anyway (of losses and gradient norms), and so costs nothing more; where none was made, it makes its own.

A pause is the same without a step around it: rank 0 polls the file and tells when it grew, and twice a second anyway,
so that no rank waits long enough to time out. The other ranks sleep meanwhile.
"""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path
from typing import Any

from workbench.core.records import Command
from workbench.engine.agree.exchange import Exchange
from workbench.engine.agree.shared_slots import SharedSlots
from workbench.rundir.commands import BadLine, CommandReader
from workbench.rundir.owner import boot_id

#: in the run directory while a run starts
SLOTS_FILE = "agreement.slots"
#: while paused: seconds between looks at the file, and most between what is told
POLL_S = 0.1
HEARTBEAT_S = 0.5


class AgreedControl:
    """The collective half. ``post`` at the start of a step and ``take`` at its end, on every rank of the run.

    ``one_host``: the ranks may be on one host, and agree through a file if they are. ``timeout_s`` as in
    ``SharedSlots``. ``offset``: bytes of commands that were taken before."""

    def __init__(
        self,
        run: str | Path,
        exchange: Exchange,
        *,
        one_host: bool = True,
        timeout_s: float | None = None,
        offset: int = 0,
    ) -> None:
        self._timeout_s = timeout_s
        self._reader = CommandReader(run, offset)
        self._exchange = exchange
        self._rank = exchange.rank
        self._told = (0, 0)
        self._is_told = True
        self._slots: SharedSlots | None = None
        if exchange.ranks > 1 and one_host:
            self._slots = self._shared(Path(run) / SLOTS_FILE)

    def _shared(self, path: Path) -> SharedSlots | None:
        """The mapped file, where every rank runs on rank 0's host and sees it; else None on all of them."""
        nonce = secrets.randbits(62)
        ranks = self._exchange.ranks
        able = True
        try:
            if self._rank == 0:
                SharedSlots.create(path, ranks, nonce)
        except OSError:
            able = False
        host = socket.gethostname().encode().ljust(64, b"\0")[:64] + boot_id().encode().ljust(64, b"\0")[:64]
        told = self._exchange.from_rank_0(nonce.to_bytes(8, "little") + host)
        slots = None
        try:
            slots = SharedSlots(path, self._rank, ranks, timeout_s=self._timeout_s)
            is_this_runs = slots.nonce == int.from_bytes(told[:8], "little")
            able = able and is_this_runs and slots.lives(0) and told[8:] == host
        except (OSError, ValueError):
            able = False
        agreed = self.all_can(able)
        if self._rank == 0:
            path.unlink(missing_ok=True)  # those who have it have it mapped
        if not agreed and slots is not None:
            slots.close()
        return slots if agreed else None

    def post(self, rider: int = 0) -> None:
        """Rank 0 says how far the control file reaches, and its ``rider``; what other ranks pass is not looked at."""
        if self._rank == 0:
            self._told = (self._reader.size(), rider)
        if self._slots is None:
            self._is_told = False
        elif self._rank == 0:
            self._slots.send(*self._told)

    def take(self, *, long_wait: bool = False) -> list[Command | BadLine]:
        """Commands to apply before the next step: the same list on every rank. Afterwards ``rider`` is rank 0's.

        ``long_wait``: rank 0 may not have posted for a while.
        """
        if self._slots is not None and self._rank:
            self._told = self._slots.receive(long_wait=long_wait)
        elif not self._is_told:
            self.summed(0.0, 0.0)
        return self._reader.read(self._told[0])

    def wait(self) -> list[Command | BadLine]:
        """While paused: sleep until something is asked, half a second at most. The same list on every rank. Raises
        ``PeerLostError`` when a rank of this host has ended."""
        if self._rank == 0:
            if self._slots is not None:
                self._slots.check()
            deadline = time.monotonic() + HEARTBEAT_S
            before = self._told[0]
            while self._reader.size() <= before and time.monotonic() < deadline:
                time.sleep(POLL_S)
        self.post(self.rider)
        return self.take(long_wait=True)

    def leave(self) -> None:
        """Say that this rank fails, so that others on its host do not wait for it."""
        if self._slots is not None:
            self._slots.leave()

    def summed(self, first: float, second: float) -> tuple[float, float]:
        """The sums of what the ranks pass, in double precision and alike on all of them. All ranks ask at the same
        moment, and wait for the last."""
        if self._slots is not None:
            return self._slots.summed(first, second)
        first, second, *told = self._exchange.summed(first, second, self._told)
        self._told = (told[0], told[1])
        self._is_told = True
        return first, second

    def all_can(self, able: bool) -> bool:
        """Whether every rank is ``able``; all ranks ask at the same moment."""
        unable, _ = self.summed(float(not able), 0.0)
        return not unable

    def gathered(self, value: Any) -> list[Any]:
        """What every rank passes, by rank; rare, for what is small and can be pickled."""
        return self._exchange.gathered(value)

    @property
    def is_shared(self) -> bool:
        """Whether ranks are told through a mapped file."""
        return self._slots is not None

    @property
    def rider(self) -> int:
        """The number that rank 0 gave to the last ``post``."""
        return self._told[1]

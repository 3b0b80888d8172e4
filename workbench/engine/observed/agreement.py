"""Agreement between ranks whose loops are not ours: nobody waits for ever for a rank that does not come.

A rank that stays away for ``timeout_s`` seconds ends the agreement: from then on no command is applied on any rank,
each is refused with the reason, and training goes on. What changes training is applied on all ranks or on none: when
there are commands, all ranks meet, and rank 0 says whether all came.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from workbench.core.records import Command
from workbench.engine.agree.control import AgreedControl
from workbench.engine.agree.exchange import Exchange
from workbench.engine.agree.shared_slots import PeerLostError
from workbench.errors import RunError
from workbench.rundir.commands import BadLine

_TOLD = struct.Struct("<qq")
#: messages of rank 0 that stay in the store for ranks that are behind
_KEPT = 256


class StoreExchange:
    """An ``Exchange`` over a key-value store of torch (of the process group), in which nobody waits longer than
    ``timeout_s`` seconds for another rank: then it raises ``PeerLostError``, which names the ranks."""

    def __init__(self, store: Any, rank: int, ranks: int, *, timeout_s: float) -> None:
        self.rank = rank
        self.ranks = ranks
        self._store = store
        self._timeout_s = timeout_s
        self._told = 0
        self._gathered = 0

    def from_rank_0(self, data: bytes) -> bytes:
        """As ``Exchange.from_rank_0``."""
        self._told += 1
        key = f"told-{self._told}"
        if self.rank:
            return self._get(key, 0)
        self._store.set(key, data)
        if self._told > _KEPT:
            with contextlib.suppress(RuntimeError):  # a store that deletes nothing keeps it
                self._store.delete_key(f"told-{self._told - _KEPT}")
        return data

    def tell_late(self, data: bytes) -> None:
        """Rank 0: ranks that have not come yet get this, as the first that rank 0 says."""
        self._store.set("told-1", data)

    def gathered(self, value: Any) -> list[Any]:
        """As ``Exchange.gathered``."""
        self._gathered += 1
        self._store.set(f"from-{self.rank}-{self._gathered}", pickle.dumps(value))
        return [pickle.loads(self._get(f"from-{rank}-{self._gathered}", rank)) for rank in range(self.ranks)]

    def summed(self, first: float, second: float, told: tuple[int, int]) -> tuple[float, float, int, int]:
        """As ``Exchange.summed``."""
        found = self.gathered((first, second, told))
        return sum(each[0] for each in found), sum(each[1] for each in found), *found[0][2]

    def _get(self, key: str, rank: int) -> bytes:
        try:
            self._store.wait([key], timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            raise PeerLostError(f"rank {rank} has not come for {self._timeout_s:g} s") from error
        return bytes(self._store.get(key))


class ObservedControl(AgreedControl):
    """As ``AgreedControl``, for loops whose ranks may stay away. ``apart`` says why ranks no longer agree; "" while
    they do. ``tell(text)`` is called once, when that begins."""

    def __init__(
        self, run: str | Path, exchange: Exchange, *, timeout_s: float, tell: Callable[[str], object] = print
    ) -> None:
        super().__init__(run, exchange, timeout_s=timeout_s)
        self.apart = ""
        self._tell = tell

    def post(self, rider: int = 0) -> None:
        """As ``AgreedControl.post``."""
        if self.apart:
            self._told = (self._reader.size(), 0)
            return
        try:
            super().post(rider)
        except PeerLostError as error:
            self._part(error)

    def take(self, *, long_wait: bool = False) -> list[Command | BadLine]:
        """As ``AgreedControl.take``; all ranks have met when there is a command."""
        try:
            commands = self._taken(long_wait)
        except PeerLostError as error:
            self._part(error)
            return []
        if any(isinstance(command, Command) for command in commands) and not self.apart:
            self._meet()
        return commands

    def _taken(self, long_wait: bool) -> list[Command | BadLine]:
        if self.apart:
            return [] if self._rank else self._reader.read(self._told[0])
        if self._slots is None and self._exchange.ranks > 1:
            told = _TOLD.unpack(self._exchange.from_rank_0(_TOLD.pack(*self._told)))
            self._told, self._is_told = (told[0], told[1]), True
        return super().take(long_wait=long_wait)

    def _meet(self) -> None:
        if self._exchange.ranks == 1:
            return
        missing: PeerLostError | None = None
        try:
            self.summed(0.0, 0.0)
        except PeerLostError as error:
            missing = error
        try:
            all_came = self._from_rank_0(int(missing is None))
        except PeerLostError as error:
            missing, all_came = error, 0
        if not all_came:
            self._part(missing or PeerLostError("a rank did not call run.step"))

    def _from_rank_0(self, number: int) -> int:
        """A number that rank 0 says, on every rank."""
        if self._slots is None:
            return int(self._exchange.from_rank_0(b"%d" % number))
        if self._rank == 0:
            self._slots.send(number, 0)
            return number
        return self._slots.receive()[0]

    def check(self) -> None:
        """``RunError`` while ranks do not agree: a command that only some of them applied would tear them apart."""
        if self.apart:
            raise RunError(
                f"the ranks no longer agree ({self.apart}), so nothing can be changed: call run.step on every rank, "
                "the same number of times"
            )

    def _part(self, error: PeerLostError) -> None:
        self.apart = str(error)
        self._tell(self.apart)

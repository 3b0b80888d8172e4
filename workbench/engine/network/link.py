"""A rank's link as a token bucket: when what is sent over it has arrived. Pure but for the moment it is free from."""

from __future__ import annotations

from collections.abc import Collection

from workbench.core.network import Network


class Link:
    """One after the other, collectives take the link for as long as their bytes do; latency follows, and takes it for
    no other."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._free_s = 0.0

    def over_at(self, now_s: float, kind: str, ranks: Collection[int], bytes_: float) -> float:
        """The moment at which a collective that begins at ``now_s`` is over. ``bytes_``: as
        ``core.network.messages``; each of the ``ranks`` is as slow as the slowest."""
        slowed, size = self._network.slowed(ranks), len(ranks)
        self._free_s = max(now_s, self._free_s) + slowed * self._network.transfer_s(kind, size, bytes_)
        return self._free_s + slowed * self._network.wait_s(kind, size)

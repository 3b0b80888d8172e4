"""Do all ranks read the same data? Asked once, where each rank reads a stream whole and takes its share of it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.containers import entries
from workbench.engine.base.tensor import is_array, is_tensor
from workbench.errors import ConfigError

_TEXTS = (str, bytes, int, float, complex, type(None))


class SameData:
    """Compares the first batch of a stream over the ranks."""

    def __init__(self) -> None:
        self._exchange: Exchange | None = None

    def share_with(self, exchange: Exchange) -> None:
        """Let ``check`` compare over these ranks. All ranks call it."""
        self._exchange = exchange if exchange.ranks > 1 else None

    def check(self, batch: Any) -> None:
        """Raise ``ConfigError``, on all ranks, when the first batch (None: there is none) differs between ranks.

        Collective the first time; later calls do nothing.
        """
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        found = exchange.gathered(_digest(batch))
        others = [rank for rank, digest in enumerate(found) if digest != found[0]]
        if others:
            raise ConfigError(
                f"ranks read different data: the first batch of rank {others[0]} differs from that of rank 0. "
                "Each rank takes its share of what it reads, so every rank has to read the same samples: seed the "
                "generators that the dataset draws from, and do not split it by rank (workers may split it)",
                field="dataset",
            )


def _digest(batch: Any) -> str:
    """A hash of everything in ``batch``: of its arrays, texts and numbers, in order."""
    digest = hashlib.blake2b(digest_size=16)
    waiting = [batch]
    while waiting:
        value = waiting.pop()
        if is_array(value) or is_tensor(value):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes_of(value))
        elif isinstance(value, _TEXTS):
            digest.update(repr(value).encode())
        else:
            waiting += [entry for _, entry in reversed(entries(value) or [])]
    return digest.hexdigest()


def _bytes_of(array: Any) -> bytes:
    if not is_tensor(array):
        return b"" if array.dtype.hasobject else bytes(array.tobytes())
    if array.is_nested or str(array.layout) != "torch.strided":
        return b""  # what reads it refuses it
    plain = array.detach().cpu().contiguous().flatten()
    return bytes(plain.view(torch.uint8).numpy().tobytes())

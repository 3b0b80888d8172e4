"""Small whole numbers, several in a byte."""

from __future__ import annotations

import torch


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes of ``values`` (flat, whole, from 0 to 2**bits - 1), of which the first is in the lowest bits.

    ``bits``: 1, 2 or 4. The last byte is filled up with zeros.
    """
    per_byte = 8 // bits
    values = torch.nn.functional.pad(values.to(torch.uint8), (0, -len(values) % per_byte)).view(-1, per_byte)
    packed = values[:, 0].clone()
    for place in range(1, per_byte):
        packed |= values[:, place] << (bits * place)
    return packed


def unpack(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """Undo ``pack``: the first ``length`` values, as uint8."""
    places = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(places, dim=1).flatten()[:length]

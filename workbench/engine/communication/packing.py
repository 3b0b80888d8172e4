"""Small whole numbers, several in a byte."""

from __future__ import annotations

import torch


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes of ``values`` (flat, whole, from 0 to 2**bits - 1), of which the first is in the lowest bits.

    ``bits``: 1, 2 or 4. The last byte is filled up with zeros.
    """
    per_byte = 8 // bits
    values = torch.nn.functional.pad(values.to(torch.uint8), (0, -len(values) % per_byte)).view(-1, per_byte)
    return (values << _shifts(bits, values.device)).sum(1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """Undo ``pack``: the first ``length`` values, as uint8."""
    return ((packed[:, None] >> _shifts(bits, packed.device)) & (2**bits - 1)).flatten()[:length]


def _shifts(bits: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)

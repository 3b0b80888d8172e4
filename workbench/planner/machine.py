"""What a machine does in a second, as a short calibration measured it, and how long messages take on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.core.network import messages


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates of one rank while all ranks are busy.

    ``flops_per_s``: of matrix products in ``precision``. ``bytes_per_s``: read and written by one operation on a large
    tensor. ``operation_s``: of a call of an operator on tiny tensors, with the module around it: a third of forward and
    backward. ``update_s``: of the optimizer's calls for one tiny parameter. ``latency_s`` and ``link_bytes_per_s``: of
    a message between two ranks (NaN: not measured, one rank). ``host``, ``device``, ``ranks``, ``threads``: where it
    was measured; ``date``: when, as ISO text. ``overlaps``: whether reductions run beside the backward pass.
    """

    host: str
    device: str
    ranks: int
    threads: int
    date: str
    precision: str
    flops_per_s: float
    bytes_per_s: float
    operation_s: float
    update_s: float
    latency_s: float = math.nan
    link_bytes_per_s: float = math.nan
    overlaps: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """The inverse of ``to_json``."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in data.items()}
        return cls(**values)

    def message_s(self, kind: str, size: int, bytes_: float) -> float:
        """Seconds of one collective of ``bytes_`` over ``size`` ranks, by the alpha-beta model: see
        ``core.network.messages``."""
        if size < 2:
            return 0.0
        rounds, sent = messages(kind, size, bytes_)
        return rounds * self.latency_s + sent / self.link_bytes_per_s

"""The network that ``--network`` asks for: its rate, its latency, its stragglers; and how long collectives take on one.

``100Mbit,20ms,straggler=rank1:2x``: a rate in each direction, the latency of a message one way, and ranks whose
messages take longer. A preset stands for its own: ``wan-100m``, ``home,straggler=rank1:2x``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from workbench.errors import ConfigError, suggest

_FLAG = "--network"
_BITS = {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9, "Tbit": 1e12}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_VALUE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]+)")
_STRAGGLER = re.compile(r"straggler=rank(\d+):(\d+(?:\.\d+)?)x")


@dataclass(frozen=True, kw_only=True)
class Network:
    """``bits_per_s``: of a rank's link, in each direction. ``latency_s``: of a message, one way. ``stragglers``: by
    rank, how many times as long its messages take."""

    bits_per_s: float
    latency_s: float = 0.0
    stragglers: Mapping[int, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """``"100Mbit,20ms,straggler=rank1:2x"``, which ``read`` reads."""
        words = [_in_unit(self.bits_per_s, _BITS), _in_unit(self.latency_s, _SECONDS)]
        return ",".join([*words, *(f"straggler=rank{rank}:{times:g}x" for rank, times in self.stragglers.items())])

    def slowed(self, ranks: Collection[int]) -> float:
        """How many times as long a collective of these ranks takes, as the slowest of them does."""
        return max((self.stragglers.get(rank, 1.0) for rank in ranks), default=1.0)

    def transfer_s(self, kind: str, size: int, bytes_: float) -> float:
        """For how long a collective takes a rank's link. ``bytes_``: as ``messages``."""
        return 8 * messages(kind, size, bytes_)[1] / self.bits_per_s

    def wait_s(self, kind: str, size: int) -> float:
        """What latency adds to a collective of ``size`` ranks."""
        return messages(kind, size, 0.0)[0] * self.latency_s


#: nominal rates of one link in one direction; latencies are usual ones
PRESETS = {
    "nvlink": Network(bits_per_s=3.6e12, latency_s=1e-6),
    "pcie": Network(bits_per_s=256e9, latency_s=1e-6),
    "infiniband-400g": Network(bits_per_s=400e9, latency_s=2e-6),
    "ethernet-10g": Network(bits_per_s=10e9, latency_s=50e-6),
    "wan-100m": Network(bits_per_s=100e6, latency_s=20e-3),
    "home": Network(bits_per_s=20e6, latency_s=15e-3),
}


def messages(kind: str, size: int, bytes_: float) -> tuple[int, float]:
    """Messages one after the other, and the bytes that each rank sends, in a collective over ``size`` ranks.

    ``bytes_`` counts as ``CollectiveRecord.bytes``. Ring algorithms: an all-reduce sends ``2 (n-1)/n`` of them in
    ``2 (n-1)`` messages, an all-gather, reduce-scatter or all-to-all half of that, a message between two ranks all of
    them once (Thakur, Rabenseifner and Gropp 2005).
    """
    if size < 2:
        return 0, 0.0
    rounds = {"all_reduce": 2 * (size - 1), "send": 1, "recv": 1}.get(kind, size - 1)
    return rounds, bytes_ if kind in ("send", "recv") else bytes_ * rounds / size


def read(text: str) -> Network:
    """What ``--network`` says. ``ConfigError`` for what it cannot be."""
    first, *words = (word.strip() for word in text.split(","))
    found = PRESETS.get(first)
    if found is None:
        rate = _value(first, _BITS)
        if rate is None or not rate:
            raise ConfigError(
                f"{_FLAG} {text}: begin with a rate, such as 100Mbit, or a preset: {suggest(first, PRESETS)}",
                field=_FLAG,
            )
        found = Network(bits_per_s=rate)
    for word in words:
        found = _with(found, word, text)
    return found


def normal(text: str) -> str:
    """``text`` as ``Network.text``; "" stays so."""
    return read(text).text if text else ""


def _with(network: Network, word: str, text: str) -> Network:
    straggler = _STRAGGLER.fullmatch(word)
    if straggler is not None and float(straggler[2]) >= 1:
        return replace(network, stragglers={**network.stragglers, int(straggler[1]): float(straggler[2])})
    latency = _value(word, _SECONDS)
    if latency is None:
        why = (
            "loss is emulated below the process group only, which is not done here: leave it out"
            if word.startswith("loss")
            else "behind the rate stand a latency, such as 20ms, and stragglers, such as straggler=rank1:2x"
        )
        raise ConfigError(f"{_FLAG} {text}: {word!r} is not understood: {why}", field=_FLAG)
    return replace(network, latency_s=latency)


def _value(word: str, units: Mapping[str, float]) -> float | None:
    found = _VALUE.fullmatch(word)
    return None if found is None or found[2] not in units else float(found[1]) * units[found[2]]


def _in_unit(value: float, units: Mapping[str, float], digits: int = 10, space: str = "") -> str:
    """In the largest unit of which there is at least one."""
    fitting = [unit for unit, size in units.items() if value >= size * (1 - 1e-9)]
    unit = max(fitting, key=lambda each: units[each]) if fitting else min(units, key=lambda each: units[each])
    return f"{value / units[unit]:.{digits}g}{space}{unit}"


def rate_in_words(bits_per_s: float) -> str:
    """``"100 Mbit/s"``, with three digits."""
    return f"{_in_unit(bits_per_s, _BITS, 3, ' ')}/s"


def in_words(bits_per_s: float, latency_s: float) -> str:
    """``"100 Mbit/s, 20 ms"``, with three digits."""
    return f"{rate_in_words(bits_per_s)}, {_in_unit(latency_s, _SECONDS, 3, ' ')}"

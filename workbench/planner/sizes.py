"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from workbench.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def bytes_of(text: str, flag: str) -> float:
    """``"80GiB"`` -> 85899345920, ``"1.5 GB"`` -> 1500000000. Raises ``ConfigError``, which names ``flag``."""
    found = _SIZE.fullmatch(text)
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{flag} {text!r} is not a size: write for example 80GiB or 24GB", field=flag)
    return float(found[1]) * _UNITS[(found[2] or "").lower()]

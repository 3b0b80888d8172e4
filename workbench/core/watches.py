"""What can be watched inside a model while it trains: the values of the option and control ``watch``.

This module must not import torch: the kernel and the command line use it as well as the ranks.
"""

from __future__ import annotations

from typing import Any

from workbench.errors import ConfigError, suggest

#: what can be watched -> what that records
WATCHES: dict[str, str] = {
    "activations": "statistics of each module's output and of its gradient",
    "attention": "entropy and largest logit of each attention, from some of its queries",
    "routers": "load of the experts and entropy of each router",
    "weights": "stable rank and largest singular value of each weight",
    "micro_batches": "with the others: a row for each micro-batch instead of one for the step",
}
#: words for nothing at all
OFF = ("", "off", "none")


def parse_watch(value: Any, flag: str = "--watch") -> str:
    """``value``, such as "attention,activations", with each name once and in the order of ``WATCHES``; "" for "off".

    Raises ``ConfigError`` for a name that is not in ``WATCHES``, and for "micro_batches" alone.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{flag} takes names such as activations,attention, or off, not {value!r}", field=flag)
    if value.strip() in OFF:
        return ""
    names = [name.strip().replace("-", "_") for name in value.split(",")]
    for name in names:
        if name not in WATCHES:
            raise ConfigError(f"{flag}: unknown {name!r}: {suggest(name, WATCHES)}", field=flag)
    if set(names) == {"micro_batches"}:
        raise ConfigError(
            f"{flag} micro_batches says how others are recorded: write activations,micro_batches", field=flag
        )
    return ",".join(name for name in WATCHES if name in names)

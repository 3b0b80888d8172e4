"""What ``%dist_lab`` takes beside the flags of a run."""

from __future__ import annotations

from typing import Any

from workbench.core import algorithms, frameworks
from workbench.errors import ConfigError, suggest

#: whole gradients, by an all-reduce
DDP = "ddp"
#: what is compared unless other algorithms are named
DEFAULT = "ddp,bf16,topk:0.01+ef,powersgd:4"
#: flag -> keywords of argparse
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--config", {"metavar": "FILE", "help": "a spec file (TOML); flags override it"}),
    (
        "--algorithms",
        {
            "metavar": "A,B,...",
            "default": "",
            "help": f"what is compared, as --algorithm takes it; ddp: whole gradients (default: {DEFAULT})",
        },
    ),
    (
        "--frameworks",
        {
            "metavar": "A,B,...",
            "default": "",
            "help": "compare these frameworks instead, each under the plan that the other flags give",
        },
    ),
    (
        "--seeds",
        {"metavar": "N", "type": int, "default": 1, "help": "train each with N seeds, from --seed on (default: 1)"},
    ),
    (
        "--target",
        {
            "metavar": "LOSS",
            "type": float,
            "help": "the loss whose time is compared (default: the lowest that all reach)",
        },
    ),
)


def read(text: str) -> list[str]:
    """The algorithms of ``--algorithms``, each once, as ``TrainSpec`` has them; "" for whole gradients. An empty text:
    those of ``DEFAULT``.

    Takes ``bf16``, and ``ddp:bf16`` as in a plan. Raises ``ConfigError`` for one that there is not, and for none.
    """
    found: dict[str, None] = {}
    for word in (each.strip() for each in (text or DEFAULT).split(",")):
        if word:
            name = word.removeprefix(f"{DDP}:")
            found["" if name == DDP else algorithms.chosen(name).text] = None
    if not found:
        raise ConfigError(f"--algorithms {text!r} names none: write {DEFAULT}", field="--algorithms")
    return list(found)


def read_frameworks(text: str) -> list[str]:
    """The frameworks of ``--frameworks``, each once. Raises ``ConfigError`` for one that there is not, and for less
    than two."""
    found = list(dict.fromkeys(word for each in text.split(",") if (word := each.strip())))
    known = frameworks.installed()
    for name in found:
        if name not in known:
            raise ConfigError(
                f"--frameworks: there is no framework {name!r}; {suggest(name, known)}", field="--frameworks"
            )
    if len(found) < 2:
        raise ConfigError(
            f"--frameworks {text!r} names {'one: two are' if found else 'none: two or more are'} compared, such as "
            "colossal,torch",
            field="--frameworks",
        )
    return found


def called(algorithm: str) -> str:
    """What an algorithm is called in results."""
    return algorithm or DDP

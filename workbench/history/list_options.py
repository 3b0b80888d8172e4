"""The options of a list of runs, declared once: ``%dist_runs`` and ``workbench runs`` take the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.history.row import RunRow

#: (flag, keyword arguments of argparse); an option that is not given may be absent
OPTIONS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("--last", {"type": int, "metavar": "N", "help": "the newest N runs only"}),
    ("--sort", {"metavar": "COLUMN", "help": "sort by a column (default: when)"}),
    ("--reverse", {"action": "store_true", "help": "reverse the order: largest or newest first"}),
    ("--name", {"action": "append", "metavar": "PATTERN",
                "help": "runs whose name matches, such as sweep-*; may be repeated"}),
    ("--state", {"action": "append", "metavar": "STATE", "help": "runs in this state; may be repeated"}),
    ("--tag", {"action": "append", "metavar": "TAG", "help": "runs with this tag; may be repeated"}),
    ("--where", {"action": "append", "metavar": "COND",
                 "help": "runs that meet a condition, such as best_loss<2.5; may be repeated"}),
)  # fmt: skip
_FILTERS = ("name", "state", "tag", "where")


def selected(rows: Sequence[RunRow], given: Mapping[str, Any]) -> list[RunRow]:
    """The rows that fit the options ``given`` (name -> value), in their order. ``ConfigError`` for a wrong value."""
    from workbench.history import listing  # late: a parser of arguments needs the options only

    names, states, tags, where = (given.get(name) or () for name in _FILTERS)
    fitting = listing.choose(rows, names=names, states=states, tags=tags, where=where)
    last = given.get("last")
    newest = fitting[-last:] if last else fitting
    return listing.sort(newest, given.get("sort") or "when", descending=bool(given.get("reverse")))


def has_filter(given: Mapping[str, Any]) -> bool:
    """Whether the options leave out runs by what they are."""
    return any(given.get(name) for name in _FILTERS)

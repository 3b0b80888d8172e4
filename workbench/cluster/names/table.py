"""The variables of ranks as a table, and where ranks differ."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.cluster.names.description import Description
from workbench.core.numbers import decimal_bytes, format_table, html_table
from workbench.errors import format_ranks

_HEADER = ("name", "ranks", "type", "shape", "dtype", "device", "size", "value")
#: values of so many ranks are shown where they differ
_SHOWN_RANKS = 4


@dataclass(frozen=True)
class NamesTable:
    """The result of ``%dist_who``, displayed as text or as HTML.

    ``described``: name -> rank -> description. A name has one row; more where its type, shape, dtype or device differ
    between ranks.
    """

    described: Mapping[str, Mapping[int, Description]]
    ranks: tuple[int, ...]

    def differing(self) -> list[str]:
        """The names that are not the same on all ranks: missing on some, of another kind, or of another value."""
        return [
            name
            for name, of in self.described.items()
            if set(of) != set(self.ranks) or len({_without_value(each) for each in of.values()}) > 1
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """The rows as texts."""
        found = []
        for name, of in self.described.items():
            groups: dict[tuple[str, ...], list[int]] = {}
            for rank in sorted(of):
                each = of[rank]
                groups.setdefault((each.type, each.shape, each.dtype, each.device), []).append(rank)
            for kind, ranks in groups.items():
                size = of[ranks[0]].bytes
                held = "" if size is None else decimal_bytes(size)
                found.append(
                    (
                        name,
                        format_ranks(ranks).split(" ", 1)[1],
                        *kind,
                        held,
                        _value({rank: of[rank] for rank in ranks}),
                    )
                )
        return found

    def __repr__(self) -> str:
        return format_table(self.rows(), _HEADER) if self.described else "no names: a %%dist cell makes some"

    def _repr_html_(self) -> str:
        return html_table(self.rows(), _HEADER) if self.described else f"<p>{html.escape(repr(self))}</p>"


def _without_value(each: Description) -> tuple[str, ...]:
    return each.type, each.shape, each.dtype, each.device, each.fingerprint


def _value(of: Mapping[int, Description]) -> str:
    """The value that ranks share; or that they differ, with their values where these are short."""
    values = list(of.values())
    if len({each.fingerprint for each in values}) <= 1:
        return values[0].value
    if not all(each.value for each in values):
        return "differs between ranks"
    shown = [f"{each.value} (rank {rank})" for rank, each in list(of.items())[:_SHOWN_RANKS]]
    return "differs: " + ", ".join(shown) + (", ..." if len(of) > _SHOWN_RANKS else "")

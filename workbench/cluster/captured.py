"""The result of a cell that ``%%dist --capture`` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.cluster.cells import CellResult
from workbench.core.numbers import format_table
from workbench.errors import format_ranks

_HEADER = ("ranks", "result", "lines printed", "displays", "error")
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, repr=False)
class CapturedCell(CellResult):
    """Output and results of a cell by rank.

    ``captured[rank]``: what the rank printed (``stdout``, ``stderr``), displayed (``displays``) and raised (``error``).
    ``values``: rank -> the value of the cell's last expression, copied to the notebook; without the ranks that have
    none.
    """

    values: Mapping[int, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = []
        for rank in self.ranks:
            output = self[rank]
            printed = output.stdout.count("\n") + output.stderr.count("\n")
            error = "" if output.error is None else f"{output.error.ename}: {output.error.evalue}"
            result = (output.result or "").partition("\n")[0]
            shown = result if len(result) <= _SHOWN_CHARACTERS else result[: _SHOWN_CHARACTERS - 3] + "..."
            rows.append((format_ranks([rank]), shown, str(printed), str(len(output.displays)), error))
        return format_table(rows, _HEADER)

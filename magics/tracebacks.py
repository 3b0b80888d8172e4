"""Where ``%debug`` opens after an error of a magic: the user's cell, not the code of the magic."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from workbench.errors import CellInterrupt, WorkbenchError

_FOLDERS = tuple(str(Path(sys.modules[name].__path__[0])) for name in ("magics", "workbench"))


def end_at_the_cell(result: Any) -> None:
    """After a cell that one of our errors ended: let the traceback end before the first frame of ours.

    IPython calls it with the result of each cell.
    """
    error = result.error_in_exec
    if not isinstance(error, WorkbenchError | CellInterrupt):
        return
    users: TracebackType | None = None
    tb = error.__traceback__
    while tb is not None and not tb.tb_frame.f_code.co_filename.startswith(_FOLDERS):
        if tb.tb_frame.f_globals.get("__name__") == "__main__":
            users = tb
        tb = tb.tb_next
    if users is not None:
        users.tb_next = None

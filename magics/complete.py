"""Tab completes the arguments of our magics."""

from __future__ import annotations

import re
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from workbench.core.flags import normalised

_MAGIC = re.compile(r"%{1,2}(dist\w*)\s+(.*)$")


def register(shell: InteractiveShell) -> None:
    """Let ``shell`` complete them, also behind ``name = %dist_...``."""
    shell.set_hook("complete_command", _complete, re_key=r".*%{1,2}dist\w*\s")


def _complete(shell: InteractiveShell, event: Any) -> list[str]:
    from workbench.run.completion import candidates

    found = _MAGIC.search(event.text_until_cursor)
    if found is None:
        return []
    name, line = found.groups()
    kind = "cell" if f"%%{name}" in event.text_until_cursor else "line"
    magic = shell.magics_manager.magics[kind].get(name) or shell.magics_manager.magics["line"].get(name)
    parser = getattr(magic, "parser", None)
    if parser is None:
        return []
    before, _, current = line.rpartition(" ")
    return candidates(parser, normalised(before).split(), current)

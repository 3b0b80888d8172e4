"""The names that cells of this rank find. They come back before the next cell when one removes them (``%reset``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_given: dict[str, Any] = {}


def give(shell: Any, names: Mapping[str, Any]) -> None:
    """Gives cells of ``shell`` names, in place of others of the same name."""
    _given.update(names)
    shell.push(dict(names), interactive=False)


def restore(shell: Any) -> None:
    """Gives cells the names again that are missing, and IPython those that it needs itself."""
    if "_oh" not in shell.user_ns:
        shell.init_user_ns()
    shell.push({name: value for name, value in _given.items() if name not in shell.user_ns}, interactive=False)

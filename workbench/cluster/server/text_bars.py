"""Progress bars of tqdm on ranks are text: a widget of a rank has no front end that could draw it."""

from __future__ import annotations

import sys
from types import ModuleType


def use_text_bars() -> None:
    """Let ``tqdm.notebook`` be tqdm's bars in text, so that ``tqdm.auto`` takes these too: it asks for more names of
    that module than the two that it gets. For a process that has not imported it yet."""
    import tqdm
    from tqdm import std

    module = ModuleType("tqdm.notebook", "Bars in text, in place of widgets.")
    module.tqdm = module.tqdm_notebook = std.tqdm  # type: ignore[attr-defined]
    module.trange = module.tnrange = std.trange  # type: ignore[attr-defined]
    tqdm.notebook = sys.modules["tqdm.notebook"] = module

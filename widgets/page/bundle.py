"""The panel's script and style as one text each: anywidget takes one module, we write several."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parents[1] / "static"
#: in the order in which they are needed
SCRIPTS = ("text", "page", "link", "figures", "overview", "ranks", "lists", "controls", "view", "state", "panel")
STYLES = ("panel", "tabs", "lists")
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


@cache
def script(last: str = "panel", before: tuple[str, ...] = SCRIPTS[:-1]) -> str:
    """The modules ``before`` one after the other, then ``last``, without their imports of each other."""
    names = [*before, last]
    texts = [(STATIC / f"{name}.js").read_text(encoding="utf-8") for name in names]
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


@cache
def style() -> str:
    """The style sheets one after the other."""
    return "\n".join((STATIC / f"{name}.css").read_text(encoding="utf-8") for name in STYLES)

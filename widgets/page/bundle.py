"""Joins the script modules, and the style sheets, of a widget into one text each, as anywidget takes only one."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parents[1] / "static"
#: modules of the panel: each comes after those that it imports
SCRIPTS = (
    "text",
    "page",
    "link",
    "reload",
    "figures",
    "overview",
    "ranks",
    "lists",
    "logged",
    "controls",
    "view",
    "state",
    "panel",
)
STYLES = ("panel", "tabs", "lists", "logged")
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


@cache
def script(last: str = "panel", before: tuple[str, ...] = SCRIPTS[:-1]) -> str:
    """Return the modules ``before`` and then ``last`` as one text, without their imports of each other."""
    names = [*before, last]
    texts = [(STATIC / f"{name}.js").read_text(encoding="utf-8") for name in names]
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


@cache
def style() -> str:
    """Return the style sheets as one text."""
    return "\n".join((STATIC / f"{name}.css").read_text(encoding="utf-8") for name in STYLES)

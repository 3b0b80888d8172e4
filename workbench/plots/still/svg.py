"""matplotlib's SVG made fit to stand in a page: small, without identifiers that clash, in the colours of the page.

What is no data is drawn in the colours of ``INK``, which nobody else uses. Here they become the classes that the page
colours for light and dark: ``a`` axis lines, ``g`` grid, ``t`` text, ``l`` text of the legend.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from workbench.plots.still.canvas import FONT_PX, Ink

INK = Ink(text="#01fe02", muted="#02fe01", line="#03fe01", grid="#01fe03")
#: resolution of the images inside, per unit of the SVG
IMAGE_SCALE = 1.5
_CLASSES = {INK.text: "t l", INK.muted: "t", INK.line: "a", INK.grid: "g"}
_DEFAULTS = {
    "stroke-linejoin": "round", "stroke-linecap": "butt", "stroke-opacity": "1", "fill-opacity": "1", "opacity": "1",
    "stroke-dashoffset": "0", "stroke-width": "1",
}  # fmt: skip
_ROUNDED = ("d", "x", "y", "width", "height", "transform")
_DECIMALS = re.compile(r"(\d\.\d)\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def written(canvas: Figure, *, name: str, words: str) -> str:
    """The canvas as an SVG element for HTML. ``name`` begins its identifiers, ``words`` describe it to who cannot see.

    Characters that matplotlib's own font lacks are no matter: the page's font has them.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "path.simplify": True,
        "font.family": "sans-serif",
    }
    file = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(file, format="svg", dpi=72 * IMAGE_SCALE, transparent=True, metadata=nothing)
    root = ET.fromstring(file.getvalue())
    _simplify(root)
    _rename(root, name)
    root.attrib = {
        "class": "still",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": words,
        "font-family": "system-ui, sans-serif",
        "font-size": str(FONT_PX),
        "stroke-linejoin": "round",
    }
    return ET.tostring(root, encoding="unicode")


def _simplify(element: ET.Element) -> None:
    """Keep of an element and of those inside what is drawn: no metadata, no empty groups, short numbers."""
    element.tag = element.tag.rpartition("}")[2]
    element.text = element.text if element.tag == "text" else None
    element.tail = None
    _set_attributes(element)
    kept: list[ET.Element] = []
    for child in element:
        _simplify(child)
        if child.tag in ("metadata", "style") or (child.tag in ("g", "defs") and not len(child)):
            continue
        if child.tag == "g" and not child.attrib:
            kept.extend(child)
        elif child.tag == "g" and kept and kept[-1].tag == "g" and kept[-1].attrib == child.attrib:
            kept[-1].extend(child)
        else:
            kept.append(child)
    element[:] = kept


def _set_attributes(element: ET.Element) -> None:
    """Styles as attributes, so that a page's style sheet can change them; colours of ``INK`` as classes."""
    found = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    style = dict(part.strip().split(": ", 1) for part in found.pop("style", "").split(";") if ": " in part)
    css = _CLASSES.get(style.get("fill", "")) or _CLASSES.get(style.get("stroke", ""))
    if css:
        found["class"] = css
        style = {name: value for name, value in style.items() if name == "text-anchor"}
    if found.get("transform", "").startswith("rotate(-0 "):
        del found["transform"]
    if element.tag == "g":
        found.pop("id", None)
    if font := style.pop("font", ""):
        style["font-size"] = font.partition("px")[0].split()[-1]
    if element.tag == "text" and style.get("text-anchor") == "start":
        del style["text-anchor"]
    found |= {name: value for name, value in style.items() if _DEFAULTS.get(name) != value}
    if style.get("stroke-linejoin") == "miter":
        del found["stroke-linejoin"]
    for name in _ROUNDED:
        if name in found:
            found[name] = _DECIMALS.sub(r"\1", found[name]).replace(" \nL ", "L").replace("\n", "")
    element.attrib = found


def _rename(root: ET.Element, name: str) -> None:
    """Drop identifiers that nothing refers to, and give the others names that are unique in the page."""
    used: dict[str, str] = {}
    for element in root.iter():
        for attribute, value in element.attrib.items():
            targets = [value[1:]] if attribute == "href" and value[:1] == "#" else _REFERENCE.findall(value)
            for target in targets:
                used.setdefault(target, f"{name}-{len(used)}")
    for element in root.iter():
        attributes: dict[str, Any] = {}
        for attribute, value in element.attrib.items():
            if attribute == "id":
                if value in used:
                    attributes["id"] = used[value]
            elif attribute == "href" and value[:1] == "#":
                attributes["href"] = f"#{used[value[1:]]}"
            else:
                attributes[attribute] = _REFERENCE.sub(lambda match: f"url(#{used[match[1]]})", value)
        element.attrib = attributes

"""Formulas where no script runs: TeX as drawn outlines, by matplotlib's mathtext.

It knows fewer commands than MathJax, which sets the formulas of an interactive report, and refuses those that it does
not know. Such a formula stays TeX, and ``set_formulas`` counts it.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from markupsafe import Markup, escape

_SPELLED = [
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"\\(?:displaystyle|textstyle|limits|nolimits|nonumber|notag|mathop)(?![A-Za-z])", ""),
        (r"\\(?:label|tag)\*?\{[^{}]*\}", ""),
        (r"\\[Bb]igg?[lrm]?(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\stackrel(?![A-Za-z])", r"\\overset"),
        (r"\\operatorname\*", r"\\operatorname"),
        (r"\\le(?![A-Za-z])", r"\\leq"),
        (r"\\ge(?![A-Za-z])", r"\\geq"),
        (r"\\iff(?![A-Za-z])", r"\\Longleftrightarrow"),
        (r"\\implies(?![A-Za-z])", r"\\Longrightarrow"),
        (r"\\[lr]Vert(?![A-Za-z])", r"\\|"),
        (r"\\[lr]vert(?![A-Za-z])", "|"),
        (r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\\[A-Za-z]+|[0-9A-Za-z])", r"\\sqrt{\1}"),
    )
]
_ALONE = re.compile(r"\s*\\begin\{(equation|displaymath|math)(\*?)\}(.*)\\end\{\1\2\}\s*", re.DOTALL)
_ROWS = re.compile(
    r"\s*\\begin\{(align|aligned|gather|gathered|split|eqnarray|multline)(\*?)\}(.*)\\end\{\1\2\}\s*", re.DOTALL
)
_HAS_ANY = re.compile(r'class="[^"]*\bmath(?:ful)?\b')
_FENCES = {
    "cases": (r"\{", ""), "dcases": (r"\{", ""), "matrix": ("", ""), "smallmatrix": ("", ""), "pmatrix": ("(", ")"),
    "bmatrix": ("[", "]"), "Bmatrix": (r"\{", r"\}"), "vmatrix": ("|", "|"), "Vmatrix": (r"\|", r"\|"),
}  # fmt: skip
_FENCED = re.compile(rf"\\begin\{{({'|'.join(_FENCES)})\}}(.*?)\\end\{{\1\}}", re.DOTALL)
_POWER = re.compile(r"\s*(\^(?:\{[^{}]*\}|\\[A-Za-z]+|\w))")
#: formulas in text: their own marks, or an environment
_MARKED = re.compile(
    r"\$\$(?P<display>.+?)\$\$|(?<![\\$])\$(?P<inline>(?!\s)[^$\n]+?(?<!\s))\$(?![\d$])|\\\((?P<round>.+?)\\\)"
    r"|\\\[(?P<square>.+?)\\\]|(?P<named>\\begin\{(\w+\*?)\}.+?\\end\{\6\})",
    re.DOTALL,
)


def set_formulas(part: str) -> tuple[Markup, int]:
    """A part of a page with its formulas drawn, and how many stayed TeX. Formulas are elements of class ``math``, and
    what stands between TeX's own marks in the text of those of class ``mathful``."""
    if not _HAS_ANY.search(part):
        return Markup(part), 0
    from bs4 import BeautifulSoup, NavigableString

    soup = BeautifulSoup(part, "html.parser")
    left = 0
    for place in soup.select(".math"):
        drawn = _element(place.get_text(), block="block" in place["class"])
        left += drawn is None
        if drawn is not None:
            place.replace_with(BeautifulSoup(drawn, "html.parser"))
    texts = [text for place in soup.select(".mathful") for text in place.find_all(string=True)]
    for text in texts:
        if type(text) is NavigableString and not text.find_parent(class_="math"):
            drawn, missed = _in_text(str(text))
            left += missed
            text.replace_with(BeautifulSoup(drawn, "html.parser"))
    return Markup(str(soup)), left


def _in_text(text: str) -> tuple[Markup, int]:
    """Text with what stands between TeX's marks drawn; a formula that cannot be stays as it is and is counted."""
    parts, at, left = [], 0, 0
    for match in _MARKED.finditer(text):
        tex = next(match[name] for name in ("display", "inline", "round", "square", "named") if match[name] is not None)
        drawn = _element(tex, block=not (match["inline"] or match["round"]))
        left += drawn is None
        parts += [escape(text[at : match.start()]), drawn or escape(match[0])]
        at = match.end()
    return Markup("").join([*parts, escape(text[at:])]), left


def _element(tex: str, *, block: bool) -> Markup | None:
    drawn = picture_of(tex, block)
    look = "math block done" if block else "math done"
    return drawn and Markup('<span class="{}" role="math" aria-label="{}">{}</span>').format(look, tex.strip(), drawn)


@lru_cache(maxsize=1024)
def picture_of(tex: str, block: bool = False) -> Markup | None:
    """A formula as SVG that takes the colour and size of the text around it; several lines as a table of such. None
    where a command is not known. ``block``: on a line of its own, with large fractions."""
    alone = _ALONE.fullmatch(tex)
    tex = alone[3] if alone else tex
    rows = _ROWS.fullmatch(tex)
    if rows is not None:
        return _table(rows[3], "equations")
    fenced = _FENCED.search(tex)
    if fenced is None:
        return _outlines(_spelled(tex, block))
    before, after = tex[: fenced.start()], tex[fenced.end() :]
    left, right = _FENCES[fenced[1]]
    power = _POWER.match(after)
    after = after[power.end() :] if power else after
    parts = [
        picture_of(before, block) if before.strip() else Markup(""),
        _fence(left),
        _table(fenced[2], "cases" if "cases" in fenced[1] else "array"),
        _fence(right),
        _raised(power[1]) if power else Markup(""),
        picture_of(after, block) if after.strip() else Markup(""),
    ]
    drawn = [part for part in parts if part is not None]
    whole = Markup('<span class="math-fenced">{}</span>').format(Markup("").join(drawn))
    return whole if len(drawn) == len(parts) else None


def _table(body: str, look: str) -> Markup | None:
    """Rows of cells; None where one of them cannot be drawn."""
    lines = []
    for line in re.split(r"\\\\(?:\[[^\]]*\])?", body):
        cells = [
            _outlines(_spelled(cell, look == "equations")) if cell.strip() else Markup("") for cell in line.split("&")
        ]
        if None in cells:
            return None
        if any(cells):
            lines.append(
                Markup("<span>{}</span>").format(Markup("").join(map(Markup("<span>{}</span>").format, cells)))
            )
    return Markup('<span class="math-rows {}">{}</span>').format(look, Markup("").join(lines))


def _fence(mark: str) -> Markup | None:
    """A bracket as high as what stands beside it."""
    if not mark:
        return Markup("")
    drawn = _outlines(mark, stretched=True)
    return drawn and Markup('<span class="math-fence">{}</span>').format(drawn)


def _raised(power: str) -> Markup | None:
    drawn = _outlines(power)
    return drawn and Markup('<span class="math-raised">{}</span>').format(drawn)


def _spelled(tex: str, block: bool) -> str:
    """TeX with what mathtext calls otherwise in its own words."""
    for pattern, instead in _SPELLED:
        tex = pattern.sub(instead, tex)
    if block:  # a fraction within another stays small
        parts = re.split(r"(\\frac(?![A-Za-z]))", tex)
        for at in range(1, len(parts), 2):
            before = "".join(parts[:at])
            if before.count("{") == before.count("}"):
                parts[at] = r"\dfrac"
        tex = "".join(parts)
    return " ".join(tex.split())


def _outlines(tex: str, *, stretched: bool = False) -> Markup | None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextToPath

    maker = TextToPath()
    em = maker.FONT_SCALE
    font = FontProperties(size=em, math_fontfamily="cm")
    try:
        size = maker.get_text_width_height_descent(f"${tex}$", font, ismath=True)
        vertices, codes = maker.get_text_path(font, f"${tex}$", ismath=True)
    except (ValueError, RuntimeError):  # mathtext does not know it
        return None
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    path = "".join(
        "Z"
        if code == Path.CLOSEPOLY
        else letters[code] + " ".join(f"{x:.0f} {-y:.0f}" for x, y in points.reshape(-1, 2))
        for points, code in Path(vertices, codes).iter_segments(simplify=False, curves=True)
    )
    width, height, depth = (math.ceil(length) + 4 for length in size)  # a hair's breadth around it
    place = (
        'preserveAspectRatio="none"'
        if stretched
        else f'width="{width / em}em" height="{height / em}em" style="vertical-align:{-depth / em}em"'
    )
    box = f"0 {depth - height} {width} {height}"
    return Markup(f'<svg aria-hidden="true" {place} viewBox="{box}" fill="currentColor"><path d="{path}"/></svg>')

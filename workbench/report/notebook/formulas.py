"""Draws TeX formulas as SVG with matplotlib's mathtext, for reports without scripts.

Mathtext supports fewer commands than MathJax, which draws the formulas of an interactive report. A formula with an
unsupported command stays TeX, and ``draw_formulas`` counts it.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from markupsafe import Markup, escape

#: TeX that mathtext does not support -> equivalent TeX that it supports
_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
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
#: environments with one equation, and environments with rows of equations
_EQUATION = re.compile(r"\s*\\begin\{(equation|displaymath|math)(\*?)\}(.*)\\end\{\1\2\}\s*", re.DOTALL)
_ROWS = re.compile(
    r"\s*\\begin\{(align|aligned|gather|gathered|split|eqnarray|multline)(\*?)\}(.*)\\end\{\1\2\}\s*", re.DOTALL
)
_HAS_MATH_CLASS = re.compile(r'class="[^"]*\bmath(?:ful)?\b')
#: environments with brackets -> the left and right bracket
_BRACKETS = {
    "cases": (r"\{", ""), "dcases": (r"\{", ""), "matrix": ("", ""), "smallmatrix": ("", ""), "pmatrix": ("(", ")"),
    "bmatrix": ("[", "]"), "Bmatrix": (r"\{", r"\}"), "vmatrix": ("|", "|"), "Vmatrix": (r"\|", r"\|"),
}  # fmt: skip
_BRACKETED = re.compile(rf"\\begin\{{({'|'.join(_BRACKETS)})\}}(.*?)\\end\{{\1\}}", re.DOTALL)
_SUPERSCRIPT = re.compile(r"\s*(\^(?:\{[^{}]*\}|\\[A-Za-z]+|\w))")
#: formulas in text: between TeX's delimiters, or an environment
_DELIMITED = re.compile(
    r"\$\$(?P<display>.+?)\$\$|(?<![\\$])\$(?P<inline>(?!\s)[^$\n]+?(?<!\s))\$(?![\d$])|\\\((?P<round>.+?)\\\)"
    r"|\\\[(?P<square>.+?)\\\]|(?P<named>\\begin\{(\w+\*?)\}.+?\\end\{\6\})",
    re.DOTALL,
)


def draw_formulas(html: str) -> tuple[Markup, int]:
    """Replace the formulas in HTML by SVGs. Returns the HTML, and how many formulas could not be drawn and stay TeX.

    Formulas are the elements of class ``math``, and text between TeX's delimiters in elements of class ``mathful``.
    """
    if not _HAS_MATH_CLASS.search(html):
        return Markup(html), 0
    from bs4 import BeautifulSoup, NavigableString

    soup = BeautifulSoup(html, "html.parser")
    undrawn = 0
    for element in soup.select(".math"):
        drawn = _draw_element(element.get_text(), block="block" in element["class"])
        undrawn += drawn is None
        if drawn is not None:
            element.replace_with(BeautifulSoup(drawn, "html.parser"))
    texts = [text for element in soup.select(".mathful") for text in element.find_all(string=True)]
    for text in texts:
        if type(text) is NavigableString and not text.find_parent(class_="math"):
            drawn, undrawn_in_text = _draw_in_text(str(text))
            undrawn += undrawn_in_text
            text.replace_with(BeautifulSoup(drawn, "html.parser"))
    return Markup(str(soup)), undrawn


def _draw_in_text(text: str) -> tuple[Markup, int]:
    """Replace the formulas between TeX's delimiters in a text. Returns the HTML and the number that stay TeX."""
    parts, position, undrawn = [], 0, 0
    for match in _DELIMITED.finditer(text):
        tex = next(match[name] for name in ("display", "inline", "round", "square", "named") if match[name] is not None)
        drawn = _draw_element(tex, block=not (match["inline"] or match["round"]))
        undrawn += drawn is None
        parts += [escape(text[position : match.start()]), drawn or escape(match[0])]
        position = match.end()
    return Markup("").join([*parts, escape(text[position:])]), undrawn


def _draw_element(tex: str, *, block: bool) -> Markup | None:
    svg = draw_formula(tex, block)
    css_class = "math block done" if block else "math done"
    return svg and Markup('<span class="{}" role="math" aria-label="{}">{}</span>').format(css_class, tex.strip(), svg)


@lru_cache(maxsize=1024)
def draw_formula(tex: str, block: bool = False) -> Markup | None:
    """Draw a formula as an SVG that takes the colour and size of the surrounding text.

    Several lines, cases and matrices become a table of SVGs. None if the formula contains an unsupported command.
    ``block``: the formula stands on its own line, with large fractions.
    """
    equation = _EQUATION.fullmatch(tex)
    tex = equation[3] if equation else tex
    rows = _ROWS.fullmatch(tex)
    if rows is not None:
        return _draw_table(rows[3], "equations")
    bracketed = _BRACKETED.search(tex)
    if bracketed is None:
        return _draw_svg(_rewrite_for_mathtext(tex, block))
    before, after = tex[: bracketed.start()], tex[bracketed.end() :]
    left, right = _BRACKETS[bracketed[1]]
    superscript = _SUPERSCRIPT.match(after)
    after = after[superscript.end() :] if superscript else after
    parts = [
        draw_formula(before, block) if before.strip() else Markup(""),
        _draw_bracket(left),
        _draw_table(bracketed[2], "cases" if "cases" in bracketed[1] else "array"),
        _draw_bracket(right),
        _draw_superscript(superscript[1]) if superscript else Markup(""),
        draw_formula(after, block) if after.strip() else Markup(""),
    ]
    drawn = [part for part in parts if part is not None]
    html = Markup('<span class="math-fenced">{}</span>').format(Markup("").join(drawn))
    return html if len(drawn) == len(parts) else None


def _draw_table(body: str, css_class: str) -> Markup | None:
    """Draw the rows and cells of an environment as a table; None if one of the cells cannot be drawn."""
    rows = []
    for line in re.split(r"\\\\(?:\[[^\]]*\])?", body):
        cells = [
            _draw_svg(_rewrite_for_mathtext(cell, css_class == "equations")) if cell.strip() else Markup("")
            for cell in line.split("&")
        ]
        if None in cells:
            return None
        if any(cells):
            rows.append(Markup("<span>{}</span>").format(Markup("").join(map(Markup("<span>{}</span>").format, cells))))
    return Markup('<span class="math-rows {}">{}</span>').format(css_class, Markup("").join(rows))


def _draw_bracket(bracket: str) -> Markup | None:
    """Draw a bracket that stretches to the height of the table beside it; empty for no bracket."""
    if not bracket:
        return Markup("")
    svg = _draw_svg(bracket, stretch=True)
    return svg and Markup('<span class="math-fence">{}</span>').format(svg)


def _draw_superscript(superscript: str) -> Markup | None:
    svg = _draw_svg(superscript)
    return svg and Markup('<span class="math-raised">{}</span>').format(svg)


def _rewrite_for_mathtext(tex: str, block: bool) -> str:
    """Replace commands that mathtext does not support by equivalent ones. ``block``: make outer fractions large."""
    for pattern, replacement in _REPLACEMENTS:
        tex = pattern.sub(replacement, tex)
    if block:  # a fraction inside braces, such as a nested fraction, stays small
        parts = re.split(r"(\\frac(?![A-Za-z]))", tex)
        for index in range(1, len(parts), 2):
            before = "".join(parts[:index])
            if before.count("{") == before.count("}"):
                parts[index] = r"\dfrac"
        tex = "".join(parts)
    return " ".join(tex.split())


def _draw_svg(tex: str, *, stretch: bool = False) -> Markup | None:
    """Draw TeX that mathtext supports as an SVG of outlines; None if it is not supported. ``stretch``: the SVG fills
    its element instead of having the size of its text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextToPath

    text_to_path = TextToPath()
    em = text_to_path.FONT_SCALE
    font = FontProperties(size=em, math_fontfamily="cm")
    try:
        size = text_to_path.get_text_width_height_descent(f"${tex}$", font, ismath=True)
        vertices, codes = text_to_path.get_text_path(font, f"${tex}$", ismath=True)
    except (ValueError, RuntimeError):  # an unsupported command
        return None
    path_commands = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    path = "".join(
        "Z"
        if code == Path.CLOSEPOLY
        else path_commands[code] + " ".join(f"{x:.0f} {-y:.0f}" for x, y in points.reshape(-1, 2))
        for points, code in Path(vertices, codes).iter_segments(simplify=False, curves=True)
    )
    width, height, depth = (math.ceil(length) + 4 for length in size)  # a small margin
    size_attributes = (
        'preserveAspectRatio="none"'
        if stretch
        else f'width="{width / em}em" height="{height / em}em" style="vertical-align:{-depth / em}em"'
    )
    view_box = f"0 {depth - height} {width} {height}"
    return Markup(
        f'<svg aria-hidden="true" {size_attributes} viewBox="{view_box}" fill="currentColor"><path d="{path}"/></svg>'
    )

"""Drawing of TeX formulas as SVG; formulas with unsupported commands are not drawn."""

from __future__ import annotations

import re

import pytest
from bs4 import BeautifulSoup

from workbench.report.notebook.formulas import draw_formula, draw_formulas

COMMON_FORMULAS = [
    r"\nabla_\theta J \approx \frac1N\sum\limits_{i=1}^n \|g_i\|_2",
    r"\left\lVert x \right\rVert \le \bigl( \sqrt\pi \bigr) \iff \operatorname*{arg\,max}_x \mathcal{L}",
    r"\mathbb{E}_{x\sim p}[\log p_\theta(x)] \label{eq:e} \tag{1}",
    r"\begin{equation} E = mc^2 \nonumber \end{equation}",
]


def size(svg: str) -> tuple[float, float]:
    found = re.search(r'width="([\d.]+)em" height="([\d.]+)em"', svg)
    assert found
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("tex", COMMON_FORMULAS)
def test_common_formulas_are_drawn(tex: str) -> None:
    assert str(draw_formula(tex)).count('<path d="M') == 1


def test_the_size_of_a_formula_follows_its_text() -> None:
    widths = [size(str(draw_formula(letters)))[0] for letters in ("m", "mm", "mmm")]
    assert widths[1] - widths[0] == pytest.approx(widths[2] - widths[1], abs=0.05) and widths[0] > 0.7
    flat, fraction = (size(str(draw_formula(tex, True)))[1] for tex in ("a", r"\frac{a}{b}"))
    assert fraction > 2 * flat
    nested = r"\frac{\frac{a}{b}}{c}"
    assert size(str(draw_formula(nested, True)))[1] < 1.5 * fraction


def test_lines_of_equations_become_table_rows() -> None:
    page = BeautifulSoup(str(draw_formula(r"\begin{align*} a &= b \\[2pt] &= \frac{1}{2} \end{align*}")), "html.parser")
    rows = page.find(class_="math-rows").find_all("span", recursive=False)
    assert [[bool(cell.svg) for cell in row.find_all("span", recursive=False)] for row in rows] == [
        [True, True],
        [False, True],
    ]


def test_cases_and_matrices_have_brackets() -> None:
    tex = r"f = \begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases} + \begin{pmatrix} a & b \end{pmatrix}^T"
    page = BeautifulSoup(str(draw_formula(tex)), "html.parser")
    assert [len(table.find_all("svg")) for table in page.find_all(class_="math-rows")] == [4, 2]
    assert [bool(fence.svg) for fence in page.find_all(class_="math-fence")] == [True] * 3  # one brace, two parentheses
    assert page.get_text() == "" and page.find(class_="math-raised").svg
    assert draw_formula(tex + r"\argmax") is None


@pytest.mark.parametrize(
    "tex", [r"\argmax x", r"\begin{cases} 1 & \argmax \end{cases}", "}", r"\frac{a", "", r"\underbrace{a}_b"]
)
def test_unsupported_tex_is_not_drawn(tex: str) -> None:
    assert draw_formula(tex) is None


def test_only_formulas_are_replaced() -> None:
    part = (
        '<p title="$x$">a <span class="math">x &lt; y</span></p>'
        r'<div class="mathful">text $a_1$ &amp; \(b\) $$c$$ <b>$z$</b>'
        r" \begin{equation}d\end{equation} costs $5 &lt;b&gt; $\unknown$</div><pre>$keep$</pre>"
    )
    html, left = draw_formulas(part)
    page = BeautifulSoup(html, "html.parser")
    drawn = [(place["aria-label"], "block" in place["class"]) for place in page.find_all(role="math")]
    assert drawn == [
        ("x < y", False),
        ("a_1", False),
        ("b", False),
        ("c", True),
        ("z", False),
        (r"\begin{equation}d\end{equation}", True),
    ]
    assert page.find(class_="mathful").get_text() == r"text  &     costs $5 <b> $\unknown$" and left == 1
    assert (
        page.pre.text == "$keep$"
        and page.p["title"] == "$x$"
        and page.b is not None
        and not page.find("b", string="costs")
    )


def test_html_without_formulas_is_unchanged() -> None:
    part = "<td CLASS=odd>mathematics<br></td>"
    assert draw_formulas(part) == (part, 0)

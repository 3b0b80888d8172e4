"""A ``Verification`` as HTML without scripts: the sentence, the causes, a heat map of gradients, the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

_CELL, _NAME, _ROW, _MOST_ROWS = 22, 300, 16, 60
#: colours from far below the tolerance to it, and above it
_WITHIN = ("#eef3f7", "#d3e3ee", "#a9cbe0", "#78aed0")
_ABOVE = ("#f6bb99", "#ee7733", "#cc3311")
_COLOURS = {"same": "#009988", "differs": "#cc3311", "undecided": "#ee7733"}


def as_html(found: Any) -> str:
    """The whole of a ``Verification`` as a ``<div>``."""
    parts = [
        f'<p style="border-left:4px solid {_COLOURS[found.verdict]};padding-left:.6em;margin:.4em 0">'
        f"<b>{escape(found.sentence)}</b></p>",
        _listed("Likely cause", found.causes),
        _listed("First that differ, by size", [str(each) for each in found.findings[:8]]),
        _heat_map(found),
        _losses(found),
        f"<p><small>Tolerance: {escape(found.basis)}</small></p>",
        _listed("Notes", found.notes),
    ]
    return f'<div class="dist-verification">{"".join(parts)}</div>'


def _listed(title: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    return f"<p>{title}:</p><ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def _heat_map(found: Any) -> str:
    """Layers down, steps to the right: the difference of gradients, coloured by its share of the tolerance."""
    if not found.gradients or not found.steps:
        return ""
    order = sorted(range(len(found.layers)), key=lambda row: -_worst(found, row))[:_MOST_ROWS]
    rows = sorted(order)
    width, height = _NAME + _CELL * found.steps, _ROW * len(rows) + 22
    drawn = [
        f'<text x="{_NAME - 6}" y="{_ROW * place + 12}" text-anchor="end">{escape(_short(found.layers[row]))}</text>'
        + "".join(_cell(found, row, step, place) for step in range(found.steps))
        for place, row in enumerate(rows)
    ]
    ticks = "".join(
        f'<text x="{_NAME + _CELL * step + _CELL // 2}" y="{height - 6}" text-anchor="middle">{step + 1}</text>'
        for step in range(found.steps)
    )
    rest = len(found.layers) - len(rows)
    left_out = f" The {rest} layers nearest to the reference are left out." if rest else ""
    return (
        "<p>Difference of gradients, layer by step. Blue: within the tolerance; orange to red: above it, up to ten "
        f"times, a hundred times and more.{left_out}</p>"
        f'<svg role="img" aria-label="difference of gradients by layer and step" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10" fill="currentColor" '
        f'style="max-width:100%;height:auto">{"".join(drawn)}{ticks}</svg>'
    )


def _worst(found: Any, row: int) -> float:
    pairs = zip(found.gradients[row], found.gradient_tolerances[row], strict=True)
    return max((_share(value, allowed) for value, allowed in pairs), default=0.0)


def _share(value: float, allowed: float) -> float:
    return 0.0 if value == 0.0 or math.isinf(allowed) else value / allowed if allowed else math.inf


def _cell(found: Any, row: int, step: int, place: int) -> str:
    value, allowed = found.gradients[row][step], found.gradient_tolerances[row][step]
    title = f"{found.layers[row]}, step {step + 1}: {value:.2g} (tolerance {allowed:.2g})"
    return (
        f'<rect x="{_NAME + _CELL * step}" y="{_ROW * place}" width="{_CELL - 1}" height="{_ROW - 1}" '
        f'fill="{_colour(_share(value, allowed))}"><title>{escape(title)}</title></rect>'
    )


def _colour(share: float) -> str:
    if share <= 1:
        return _WITHIN[min(len(_WITHIN) - 1, int(share * len(_WITHIN)))]
    return _ABOVE[min(len(_ABOVE) - 1, int(math.log10(min(share, 1e6))))]


def _short(layer: str) -> str:
    return layer if len(layer) <= 48 else "…" + layer[-47:]


def _losses(found: Any) -> str:
    rows = "".join(
        f"<tr><td>{step}</td><td>{one:.6g}</td><td>{other:.6g}</td><td>{abs(one - other):.2g}</td>"
        f"<td>{allowed:.2g}</td></tr>"
        for step, (one, other, allowed) in enumerate(
            zip(found.losses, found.reference_losses, found.loss_tolerances, strict=True), start=1
        )
    )
    head = "<tr><th>step</th><th>loss</th><th>reference</th><th>difference</th><th>tolerance</th></tr>"
    return f"<details><summary>Loss by step</summary><table>{head}{rows}</table></details>"

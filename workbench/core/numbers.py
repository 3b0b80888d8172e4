"""Numbers, times and plain tables for people, the same in figures, tables, reports and messages.

``workbench/plots/browser_numbers.py`` and ``widgets/static/text.js`` have the same functions for the browser; a test
holds all three to the same texts.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence


def number(value: float | None, digits: int = 4) -> str:
    """``0.0003`` -> ``3e-4``, ``1493.34`` -> ``1,493``, ``0.50`` -> ``0.5``: at most ``digits`` significant digits
    (more of a number of 1,000 or more, which is rounded to a whole one), and no zeros behind them. None: a dash."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-3 or size >= 1e15:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_short(mantissa)}e{int(exponent)}"
    if float(f"{size:.{digits}g}") >= 1000:
        return f"{value:,.0f}"
    return _short(f"{value:.{digits - 1 - math.floor(math.log10(size))}f}")


def milliseconds(value: float | None) -> str:
    """A time that is given in ms: ``14.93`` -> ``14.9 ms``, ``1493.3`` -> ``1.49 s``, ``75000`` -> ``1 min 15 s``."""
    if value is None or not math.isfinite(value):
        return number(value)
    if float(f"{value:.3g}") < 1000:
        return f"{number(value, 3)} ms"
    return seconds(value / 1e3)


def seconds(value: float) -> str:
    """``1.4933`` -> ``1.49 s``, ``75`` -> ``1 min 15 s``, ``3725`` -> ``1 h 2 min``."""
    if float(f"{value:.3g}") < 60:
        return f"{number(value, 3)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def decimal_bytes(value: float) -> str:
    """``1500000`` -> ``1.5 MB``, in powers of 1,000 as the bandwidth of networks is counted."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    place = 0
    while value >= 999.5 and place < len(units) - 1:
        value, place = value / 1000, place + 1
    return f"{number(value, 3)} {units[place]}"


#: names of metrics that people state in percent
_SHARES = re.compile(r"acc|precision|recall|f1|auc|iou|dice|share|top.?\d", re.IGNORECASE)


def is_share(name: str, values: Sequence[float]) -> bool:
    """Whether a metric is stated in percent: by its name, and all of its values are between 0 and 1."""
    return bool(_SHARES.search(name)) and all(0 <= value <= 1 for value in values)


def metric_words(name: str, value: float) -> str:
    """``accuracy``, 0.9523 -> "accuracy 95.2 %"; ``bits_per_byte``, 1.2 -> "bits per byte 1.2"."""
    shown = f"{100 * value:.1f} %" if is_share(name, [value]) else number(value)
    return f"{name.replace('_', ' ')} {shown}"


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Rows as a plain text table with left-aligned columns."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)


def html_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Rows as a table in HTML, its texts escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"


def _short(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text

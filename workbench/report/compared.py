"""Several runs side by side: what they came to, what differs in their specs, and their curves in one figure.

``comparison`` is all that the report asks of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.plots import theme
from workbench.plots.rows import smooth, thin
from workbench.report import words
from workbench.report.facts import RunFacts
from workbench.report.figures import Drawn, Sheet, list_or_array

_NOT_COMPARED = ("name",)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``columns`` are the headers of ``rows`` (a row per run, its name first);
    ``differences``: (option, value per run) of what is not the same in all; ``figures``: their curves."""

    columns: list[str]
    rows: list[list[str]]
    differences: list[tuple[str, list[str]]]
    figures: list[Drawn]
    words: str


def comparison(runs: Sequence[RunFacts], sheet: Sheet, labels: Sequence[str] = ()) -> Comparison:
    """Compare runs; the interactive curves go onto ``sheet``. ``labels``: what to call them (default: their names)."""
    labels = list(labels) or names_of(runs)
    options = [facts.spec.options() if facts.spec else {} for facts in runs]
    keys = dict.fromkeys(key for found in options for key in found if key not in _NOT_COMPARED)
    differences = [
        (key, [words.short(found.get(key), 80) for found in options])
        for key in keys
        if len({repr(found.get(key)) for found in options}) > 1
    ]
    figures = [
        sheet.add(title, f"compared-{name}", figure, wide=True)
        for name, title, y_label, log in (
            ("loss", "Training loss, smoothed", "loss", False),
            ("tps", "Tokens per second and device, smoothed", "tokens / s / device", False),
            ("grad_norm", "Gradient norm, smoothed", "gradient norm (L2)", True),
        )
        if (figure := _overlaid(runs, labels, name, y_label, log=log)) is not None
    ]
    columns = ["run", "state", "plan", "steps", "last loss", "lowest loss", "validation loss", "tokens per s", "time"]
    rows = [_row(facts, label) for facts, label in zip(runs, labels, strict=True)]
    return Comparison(
        columns=columns, rows=rows, differences=differences, figures=figures, words=_in_words(runs, labels)
    )


def names_of(runs: Sequence[RunFacts]) -> list[str]:
    """The runs' names; those that share one are numbered."""
    names = [facts.name for facts in runs]
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return out


def _row(facts: RunFacts, label: str) -> list[str]:
    figures = facts.summary()
    losses = facts.metrics["loss"][np.isfinite(facts.metrics["loss"])]
    return [
        label,
        facts.status,
        str(figures["plan"]),
        words.number(figures["steps"]),
        words.number(figures["last_loss"]),
        words.number(float(losses.min()) if losses.size else None),
        words.number(figures["validation_loss"]),
        words.number(figures["tokens_per_second"]),
        words.duration(facts.seconds) if facts.seconds else "",
    ]


def _in_words(runs: Sequence[RunFacts], labels: Sequence[str]) -> str:
    """Which run came lowest, and which was fastest."""
    texts = []
    for key, verb, better in (
        ("validation_loss", "reached the lowest validation loss", min),
        ("last_loss", "ended with the lowest training loss", min),
        ("tokens_per_second", "was the fastest, with tokens per second of", max),
    ):
        known = {label: facts.summary()[key] for facts, label in zip(runs, labels, strict=True)}
        known = {label: value for label, value in known.items() if value is not None and math.isfinite(value)}
        if len(known) > 1:
            best = better(known, key=lambda label: known[label])
            texts.append(
                f"{best} {verb}: {words.number(known[best])}."
                if better is min
                else f"{best} {verb} {words.number(known[best])}."
            )
    return " ".join(texts)


def _no_field(label: str) -> str:
    """A label that Bokeh does not read as the name of a column."""
    return label.replace("@", "\N{FULLWIDTH COMMERCIAL AT}").replace("$", "\N{FULLWIDTH DOLLAR SIGN}")


def _overlaid(runs: Sequence[RunFacts], labels: Sequence[str], name: str, y_label: str, *, log: bool) -> Any:
    """A line per run over steps; None when none has the metric."""
    from bokeh.models import ColumnDataSource, HoverTool

    options: dict[str, Any] = {"y_axis_type": "log"} if log else {}
    drawn = theme.new_figure("", x_label="step", y_label=y_label, height=300, **options)
    lines = []
    for number, (facts, label) in enumerate(zip(runs, labels, strict=True)):
        values = facts.metrics[name].astype(float)
        if not np.isfinite(values).any():
            continue
        columns = thin(
            {"step": facts.metrics["step"].astype(float), "raw": values, "value": smooth(values, math.nan)},
            1500,
            of=["raw"],
        )
        source = ColumnDataSource({key: list_or_array(column) for key, column in columns.items()})
        dash = "solid" if number < theme.MOST_LINES else [4, 3]
        line = drawn.line("step", "value", source=source, color=theme.rank_colour(number), line_width=2, line_dash=dash)
        tips = [("run", _no_field(label)), ("step", "@step{0}"), (y_label, "@value{0.0000}")]
        drawn.add_tools(HoverTool(renderers=[line], tooltips=tips, visible=number == 0))
        lines.append((label, [line]))
    if not lines:
        return None
    theme.add_legend(drawn, [(words.short(label, 40), shown) for label, shown in lines])
    return drawn

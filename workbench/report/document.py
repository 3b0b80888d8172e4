"""``render``: facts, words and figures into the template."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from workbench.errors import RunDirectoryError
from workbench.plots import plots, theme
from workbench.plots.base import Plot
from workbench.report import facts as run_facts
from workbench.report import words
from workbench.report.facts import RunFacts
from workbench.report.figures import draw, library, script_safe
from workbench.run_directory import REPORT_FILE
from workbench.telemetry.derive import batch_of

#: events that the table shows; the rest is counted
_EVENTS_SHOWN = 500
_TEXTS_SHOWN = 20
_TEXT_LENGTH = 4000


def render(run: str | Path, out: str | Path | None = None, *, figures: Iterable[Plot] | None = None) -> Path:
    """Write the report of a run directory as one offline HTML file and return its path.

    ``out``: the file, or a directory for it; default ``report.html`` in the run directory. ``figures``: default
    all of ``workbench.plots``. Raises ``RunDirectoryError`` when ``run`` is no run directory or ``out`` cannot be
    written; whatever else is wrong with the run stands in the report.
    """
    facts = run_facts.read(run)
    target = Path(out).expanduser() if out is not None else facts.path / REPORT_FILE
    if target.is_dir():
        target /= REPORT_FILE
    html = page(facts, plots() if figures is None else figures)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_text(html, encoding="utf-8", errors="replace")
        beside.replace(target)
    except OSError as error:
        raise RunDirectoryError(f"cannot write the report {target}: {error.strerror}; pass -o FILE") from error
    return target.absolute()


def page(facts: RunFacts, figures: Iterable[Plot]) -> str:
    """The report as HTML text."""
    environment = Environment(
        loader=PackageLoader("workbench.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=words.number, gib=words.gibibytes, short=words.short, who=words.who)
    drawn = draw(facts.store, figures)
    return environment.get_template("report.html").render(
        facts=facts,
        tiles=_tiles(facts),
        summary=words.summary(facts),
        failure=_failure(facts),
        figures=drawn,
        bokeh=library() if any(figure.item for figure in drawn) else "",
        colours=script_safe(theme.COLOURS),
        validation=facts.validation(),
        confusion=_confusion(facts),
        texts=[(h.step, words.short(h.value, _TEXT_LENGTH)) for h in facts.of_kind("sample")][-_TEXTS_SHOWN:],
        events=_events(facts),
        events_left_out=max(0, len(_told(facts)) - _EVENTS_SHOWN),
        options=_options(facts),
        rerun=words.rerun(facts),
        made=words.moment(time.time()),
        version=metadata.version("dist-workbench"),
    )


def _tiles(facts: RunFacts) -> list[tuple[str, str, str]]:
    """The figures at the top: (label, value, unit)."""
    figure = facts.summary()
    steps = f"{figure['steps']:,}"
    tiles = [("Steps", steps, f"of {facts.spec.steps:,}" if facts.spec else "")]
    counted = batch_of(facts.store.table("events"))[1].capitalize()
    for label, key, unit in (
        ("Training loss", "last_loss", f"from {words.number(figure['first_loss'])}"),
        ("Validation loss", "validation_loss", ""),
        (f"{counted} per second", "tokens_per_second", f"on {facts.mesh.world_size} ranks"),
    ):
        if figure[key] is not None:
            tiles.append((label, words.number(figure[key]), unit))
    accuracy = [row["accuracy"] for row in facts.validation() if "accuracy" in row]
    if accuracy:
        tiles.append(("Accuracy", f"{100 * accuracy[-1]:.1f}", "%"))
    if facts.seconds:
        tiles.append(("Time", words.duration(facts.seconds), ""))
    return tiles


def _failure(facts: RunFacts) -> dict[str, Any] | None:
    failed = words.first_failure(facts)
    if failed is None:
        return None
    return {"who": failed.who, "step": failed.step, "text": failed.traceback or failed.message}


def _confusion(facts: RunFacts) -> dict[str, Any] | None:
    """The last confusion matrix: rows are true classes, each cell with its share of the row (for its shade)."""
    found = facts.of_kind("validation", "confusion_matrix")
    if not found:
        return None
    try:
        matrix = np.asarray(found[-1].value, dtype=float)
    except (TypeError, ValueError):
        return None
    if matrix.ndim != 2 or not matrix.size:
        return None
    share = matrix / np.maximum(np.nansum(matrix, axis=1, keepdims=True), 1)
    rows = [
        [(words.number(value), round(float(np.nan_to_num(part)), 3)) for value, part in zip(*row, strict=True)]
        for row in zip(matrix.tolist(), share.tolist(), strict=True)
    ]
    return {"step": found[-1].step, "rows": rows}


def _told(facts: RunFacts) -> list[run_facts.Happening]:
    """Events that have no place of their own in the report."""
    return [h for h in facts.happenings if h.kind not in ("sample", "validation")]


def _events(facts: RunFacts) -> list[dict[str, Any]]:
    told = _told(facts)
    begin = told[0].time if told else 0.0
    return [{"after": words.duration(max(0.0, h.time - begin)), "event": h} for h in told[:_EVENTS_SHOWN]]


def _options(facts: RunFacts) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in facts.spec.options().items() if value != ""] if facts.spec else []

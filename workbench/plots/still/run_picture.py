"""PNGs for viewers where widgets can't run (a code host, a saved notebook, an e-mail): a run's state, shares as bars.

matplotlib takes a second to import, so a function imports it when a picture is to be drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.plots import event_lines, gradients, loss, memory, theme, throughput, utilisation
from workbench.telemetry.store import Store

#: width of ``picture`` in pixels
PICTURE_WIDTH = 900


def picture(store: Store, *, title: str = "") -> bytes:
    """PNG of loss, throughput, utilisation (or memory, without device samples) and gradient norms; under 100 kB."""
    from bokeh.models import ColumnDataSource

    from workbench.plots.still.png import Pane, side_by_side

    marks = event_lines.make_marks(store)
    panes = []
    for plot in (loss, throughput, utilisation if store.rows("devices") else memory, gradients):
        columns: Any = plot.columns(store, None)[0]
        figure = plot.figure(ColumnDataSource({name: list(values) for name, values in columns.items()}))
        event_lines.add_marks(figure, marks)
        panes.append(Pane(figure=figure, title=plot.TITLE, empty="no data"))
    title = title or f"{store.run.name}: {store.spec.plan.describe()}"
    return side_by_side(panes, title=title, width=PICTURE_WIDTH)


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> bytes:
    """PNG of horizontal bars from above: name, share of the whole (0 to 1, NaN: no bar), and the text beside it."""
    from matplotlib.patches import Rectangle

    from workbench.plots.still.canvas import Canvas, shortened
    from workbench.plots.still.png import LIGHT, small_png

    left, width, row_height = 190, 260, 26
    canvas = Canvas(600, 34 + row_height * len(rows), LIGHT, background="white")
    canvas.text(14, 20, title, colour=LIGHT.text, fontsize=13, fontweight="bold")
    for number, (name, share, beside) in enumerate(rows):
        top = 32 + row_height * number
        canvas.text(left - 8, top + 13, shortened(name), colour=LIGHT.text, ha="right")
        canvas.text(left + width + 8, top + 13, beside, colour=LIGHT.text)
        if not np.isnan(share):
            canvas.add(Rectangle((left, top), width, 16, facecolor=LIGHT.grid, linewidth=0))
            used = width * min(max(share, 0.0), 1.0)
            canvas.add(Rectangle((left, top), used, 16, facecolor=theme.RANK_COLOURS[0], linewidth=0))
    return small_png(canvas.figure)


def stacked(pictures: Sequence[bytes]) -> bytes:
    """PNGs of the same width, one below the other, as one PNG."""
    if len(pictures) == 1:
        return pictures[0]
    from PIL import Image

    parts = [Image.open(io.BytesIO(png)).convert("RGB") for png in pictures]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    file = io.BytesIO()
    whole.quantize(64).save(file, "PNG")  # few colours: a saved notebook stays small
    return file.getvalue()

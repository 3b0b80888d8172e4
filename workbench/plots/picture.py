"""Draws a run's state as a small PNG, for viewers that cannot run widgets (a code host, a saved notebook, an
e-mail)."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import gradients, loss, memory, theme, throughput, utilisation
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = theme.COLOURS["light"]
SIZE_INCHES = (9.0, 5.6)
DPI = 100
_TITLE_WIDTH = 90  # characters a line


def picture(store: Store, *, title: str = "") -> bytes:
    """PNG of loss, throughput, utilisation and gradient norms, below 100 kB, drawn by matplotlib without a display.

    ``title``: heading (default: the run's name and plan).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(drawn)
    panes = drawn.subplots(2, 2)
    text = _plain(title or f"{store.run.name}: {store.spec.plan.describe()}")
    drawn.suptitle(textwrap.fill(text, _TITLE_WIDTH), fontsize=10, fontweight="bold")
    _loss(panes[0][0], loss.columns(store, None)[0])
    _throughput(panes[0][1], throughput.columns(store, None)[0])
    if store.rows("devices"):
        _per_rank(panes[1][0], utilisation.columns(store, None)[0], "Utilisation per rank (%)")
    else:
        _per_rank(panes[1][0], memory.columns(store, None)[0], "Memory per rank (GiB)")
    _gradients(drawn, panes[1][1], gradients.columns(store, None)[0])
    return _small_png(drawn)


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> bytes:
    """PNG of horizontal bars. ``rows``, from top to bottom: name, share of the whole (0 to 1, NaN: no bar), text beside
    the bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.0, 0.5 + 0.26 * len(rows)), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(drawn)
    pane = drawn.subplots()
    pane.set_title(_plain(title), fontsize=10, fontweight="bold", loc="left")
    places = np.arange(len(rows))
    shares = np.array([share for _, share, _ in rows], dtype=float).clip(0, 1)
    pane.barh(places, np.where(np.isnan(shares), 0, 1), height=0.6, color=COLOURS["grid"])
    pane.barh(places, np.nan_to_num(shares), height=0.6, color=theme.RANK_COLOURS[0])
    for place, (_, _, text) in enumerate(rows):
        pane.text(1.02, place, _plain(text), va="center", fontsize=8, color=COLOURS["text"])
    pane.set_yticks(places, [_plain(_short(name)) for name, _, _ in rows], fontsize=8)
    pane.set_xlim(0, 1.5)
    pane.set_xticks([])
    pane.invert_yaxis()
    pane.tick_params(length=0)
    for side in pane.spines.values():
        side.set_visible(False)
    return _small_png(drawn)


def _small_png(drawn: Any) -> bytes:
    """PNG with a palette, which takes a third of the size of a full-colour PNG."""
    from PIL import Image

    canvas = drawn.canvas
    canvas.draw()
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(200).save(file, "PNG", optimize=True)
    return file.getvalue()


def _dress(pane: Axes, title: str, x_label: str) -> None:
    pane.set_title(title, fontsize=9, loc="left", color=COLOURS["text"])
    pane.set_xlabel(x_label, fontsize=8, color=COLOURS["muted"])
    pane.tick_params(labelsize=8, colors=COLOURS["muted"], length=3)
    for side in ("top", "right"):
        pane.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        pane.spines[side].set_color(COLOURS["line"])


def _grid(pane: Axes) -> None:
    pane.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
    pane.set_axisbelow(True)


def _loss(pane: Axes, columns: Columns) -> None:
    _dress(pane, "Loss", "step")
    _grid(pane)
    pane.plot(columns["step"], columns["loss"], color=theme.LOSS, alpha=0.3, linewidth=0.8)
    pane.plot(columns["step"], columns["smooth"], color=theme.LOSS, linewidth=1.6, label="training, smoothed")
    known = ~np.isnan(columns["measured"])
    if known.any():
        pane.plot(columns["at"][known], columns["measured"][known], "o-", color=theme.VALIDATION, label="validation")
    if columns["step"].size:
        pane.legend(fontsize=8, frameon=False)


def _throughput(pane: Axes, columns: Columns) -> None:
    unit = throughput.unit_of(columns)
    _dress(pane, f"Throughput ({unit} / s / device)", "step")
    _grid(pane)
    pane.plot(columns["step"], columns[unit], color=theme.THROUGHPUT, alpha=0.3, linewidth=0.8)
    pane.plot(columns["step"], columns["smooth"], color=theme.THROUGHPUT, linewidth=1.6)
    pane.set_ylim(bottom=0)


def _per_rank(pane: Axes, columns: Columns, title: str) -> None:
    _dress(pane, title, "elapsed (s)")
    _grid(pane)
    lines = [name for name in columns if name != "time"]
    for index, name in enumerate(lines):
        label = name.split("_", 1)[1]
        label = f"rank {label}" if label.isdecimal() else label
        pane.plot(columns["time"], columns[name], color=theme.rank_colour(index), linewidth=1.2, label=label)
    pane.set_ylim(bottom=0)
    if columns["time"].size:
        pane.legend(fontsize=7, frameon=False, ncols=min(4, len(lines)))


def _gradients(drawn: Any, pane: Axes, columns: Columns) -> None:
    from matplotlib.colors import LogNorm

    _dress(pane, "Gradient norm per layer (L2)", "step")
    places, row = np.unique(columns["row"], return_inverse=True)
    steps, column = np.unique(columns["step"], return_inverse=True)
    table = np.full((places.size, steps.size), math.nan)
    table[row, column] = columns["colour"]
    if not np.isfinite(table).any():
        pane.text(0.5, 0.5, "no gradient statistics", ha="center", va="center", fontsize=8, color=COLOURS["muted"])
        pane.set_xticks([])
        pane.set_yticks([])
        return
    image = pane.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=LogNorm(),
        extent=(steps[0], columns["until"].max(), places.size - 0.5, -0.5),
    )
    names = dict(zip(columns["row"], columns["layer"], strict=True))
    shown = np.unique(np.linspace(0, places.size - 1, min(8, places.size)).astype(int))
    pane.set_yticks(shown, [_plain(_short(names[places[index]])) for index in shown], fontsize=6)
    drawn.colorbar(image, ax=pane, pad=0.02).ax.tick_params(which="both", labelsize=7)


def _short(name: str) -> str:
    return name if len(name) <= 26 else "…" + name[-25:]


def _plain(text: str) -> str:
    """Escape ``text`` so that matplotlib does not parse it as mathematics."""
    return text.replace("$", r"\$")


def stacked(pictures: Sequence[bytes]) -> bytes:
    """Stack PNGs of equal width vertically into one PNG."""
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
    whole.quantize(64).save(file, "PNG")  # few colours keep a saved notebook small
    return file.getvalue()

"""Still pictures of Bokeh figures: what is in the SVG against the numbers that were drawn."""

import base64
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from bokeh.models import ColumnDataSource, LogColorMapper
from bokeh.plotting import figure
from PIL import Image

from workbench.plots import event_lines as marked
from workbench.plots import theme
from workbench.plots.still.axes import elapsed, plain
from workbench.plots.still.picture import still
from workbench.plots.still.png import Pane, side_by_side
from workbench.plots.still.rows import mapped
from workbench.plots.still.svg import INK


def parsed(drawn: Any) -> ET.Element:
    return ET.fromstring(still(drawn, title="T").svg)


def texts_of(drawn: Any) -> list[str]:
    return [element.text or "" for element in parsed(drawn).iter("text")]


def stroked(drawn: Any, colour: str) -> list[np.ndarray]:
    """The points of each line of a colour, on paper; a NaN lifts the pen."""
    paths = [element.get("d", "") for element in parsed(drawn).iter("path") if element.get("stroke") == colour]
    parts = [part for path in paths for part in path.split("M")[1:]]
    return [np.array(re.findall(r"-?[\d.]+", part), dtype=float).reshape(-1, 2) for part in parts]


def images_of(drawn: Any) -> list[np.ndarray]:
    """The pixels of each image, from above (matplotlib stores them from below and mirrors them)."""
    found = []
    for element in parsed(drawn).iter("image"):
        data = base64.b64decode(element.get("href", "").partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
        found.append(pixels[::-1] if "scale(1 -1)" in element.get("transform", "") else pixels)
    return found


def test_a_line_lies_where_its_numbers_say() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 4.0, 5.0]), np.array([3.0, 1.0, np.nan, 7.0, 6.0])
    drawn = figure(width=300, height=200)
    drawn.line("x", "y", source=ColumnDataSource({"x": x, "y": y}), color="#123456", line_width=3)
    parts = stroked(drawn, "#123456")
    assert len(parts) == 2  # the NaN lifts the pen
    found, good = np.concatenate(parts), np.isfinite(y)
    for axis, values in ((0, x[good]), (1, y[good])):
        slope, offset = np.polyfit(values, found[:, axis], 1)
        assert np.allclose(slope * values + offset, found[:, axis], atol=0.11)  # cut to a tenth
        assert (slope > 0) == (axis == 0)  # up is up


def test_what_was_done_to_a_run_stands_upright_at_its_step() -> None:
    drawn = theme.new_figure("T", x_label="step", y_label="loss", marks="step")
    drawn.line("x", "y", source=ColumnDataSource({"x": [0.0, 10.0], "y": [1.0, 2.0]}), color="#123456", line_width=2)
    marked.add_marks(drawn, [{"step": step, "time": 0.0, "label": ""} for step in (0, 10)])
    (line,), upright = stroked(drawn, "#123456"), stroked(drawn, theme.MARK)
    assert len(upright) == 2 and all(part[0, 0] == part[1, 0] for part in upright)
    assert [part[0, 0] for part in upright] == line[:, 0].tolist()
    assert still(drawn, title="T").left_out == ()


def test_cutting_down_keeps_every_extreme() -> None:
    random = np.random.default_rng(0)
    x, y = np.sort(random.uniform(0, 400, 20_000)), random.normal(size=20_000)
    y[7_777] = 99.0
    drawn = figure(width=300, height=600)
    drawn.line("x", "y", source=ColumnDataSource({"x": x, "y": y}), color="#123456", line_width=2)
    found = np.concatenate(stroked(drawn, "#123456"))
    assert len(found) < 1500
    assert np.ptp(found[:, 1]) > 100
    down, below = np.polyfit([99.0, y.min()], [found[:, 1].min(), found[:, 1].max()], 1)
    across, left = np.polyfit([x[0], x[-1]], [found[0, 0], found[-1, 0]], 1)
    place = across * x + left
    for begin in range(int(place[0]), int(place[-1]), 8):
        own, kept = y[(place >= begin) & (place < begin + 8)], found[np.abs(found[:, 0] - begin - 4) <= 6, 1]
        assert kept.min() <= down * own.max() + below + 0.2 and kept.max() >= down * own.min() + below - 0.2


def test_many_cells_are_one_picture_with_the_right_colours() -> None:
    rows, columns = 30, 40
    data = {
        "left": np.tile(np.arange(columns), rows).astype(float),
        "bottom": np.repeat(np.arange(rows), columns).astype(float),
        "colour": np.arange(1.0, rows * columns + 1),
    }
    data |= {"right": data["left"] + 1, "top": data["bottom"] + 1}
    drawn = figure(width=300, height=240)
    fill = {"field": "colour", "transform": LogColorMapper(palette=["#000000", "#ffffff"])}
    drawn.quad("left", "right", "top", "bottom", source=ColumnDataSource(data), fill_color=fill, line_color=None)
    (pixels,) = images_of(drawn)
    high, wide = np.nonzero(pixels[..., 3] == 255)
    assert pixels[high.max(), wide.min()].tolist() == [0, 0, 0, 255]  # the lowest value, at the lower left
    assert pixels[high.min(), wide.max()].tolist() == [255, 255, 255, 255]
    inside = pixels[high.min() : high.max() + 1, wide.min() : wide.max() + 1]
    assert {tuple(pixel) for pixel in inside.reshape(-1, 4)} == {(0, 0, 0, 255), (255, 255, 255, 255)}  # no seams


@pytest.mark.parametrize("kind", ["LogColorMapper", "LinearColorMapper"])
def test_a_mapper_gives_the_place_that_its_formula_gives(kind: str) -> None:
    import bokeh.models

    values = np.array([1.0, 10.0, 100.0, np.nan, 1000.0])
    palette = [f"#0000{i:02x}" for i in range(100)]
    mapper = getattr(bokeh.models, kind)(palette=palette, low=1, high=1000, nan_color="#ff0000")
    share = np.log10(values) / 3 if kind.startswith("Log") else (values - 1) / 999
    found = np.round(mapped(mapper, values) * 255).astype(int)
    assert found[3].tolist() == [255, 0, 0, 255]
    known = ~np.isnan(values)
    expected = np.minimum(99, np.floor(share[known] * 100))
    assert np.abs(found[known, 2] - expected).max() <= 1  # a value on a border may take either side


def test_a_log_axis_has_powers_of_ten() -> None:
    drawn = figure(width=300, height=200, y_axis_type="log")
    drawn.line([0, 1], [1e-4, 1.0])
    assert [t for t in texts_of(drawn) if t.startswith("0.0") or t in ("1e-4", "0.1", "1")][-5:] == [
        "1e-4",
        "0.001",
        "0.01",
        "0.1",
        "1",
    ]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 12345), (0.1, 0.10001), (1e9, 3e9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    from workbench.plots.still.axes import _ticks

    ticks = [value for value, _ in _ticks(figure().yaxis[0], (low, high), (), 6)]
    assert 2 <= len(ticks) <= 12 and all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert re.fullmatch(r"[125]\.0e[-+]\d+", f"{steps[0]:.1e}")


def test_time_has_whole_minutes() -> None:
    drawn = theme.new_figure("T", x_label=theme.ELAPSED, y_label="y")
    theme.format_elapsed_axis(drawn)
    drawn.line([0.0, 1000.0], [1.0, 2.0])
    assert {"0:00:00", "0:05:00", "0:10:00", "0:15:00"} <= set(texts_of(drawn))


def test_numbers_on_an_axis_are_short() -> None:
    assert [plain(v) for v in (0.0, 12_000.0, 2.5e6, 0.000012, -3.0)] == ["0", "12,000", "2,500,000", "1.2e-5", "-3"]
    assert [plain(v) for v in (0.1 + 0.2, -0.0)] == ["0.3", "0"]
    assert elapsed(3725) == "1:02:05"


def test_words_say_what_a_line_does() -> None:
    drawn = figure(x_axis_label="step", y_axis_label="loss", width=300, height=200)
    drawn.line("x", "y", source=ColumnDataSource({"x": [1, 2, 3], "y": [5.0, 1.0, 2.0]}), legend_label="each")
    made = still(drawn, title="Loss")
    assert "loss over step" in made.words and "each: first 5, lowest 1, highest 5, last 2." in made.words
    svg = ET.fromstring(made.svg)
    assert svg.get("role") == "img" and svg.get("aria-label") == made.words


def test_hostile_labels_stay_text_and_other_glyphs_are_named() -> None:
    hostile = "<script>\"'&$x_1$"
    drawn = figure(x_range=[hostile, "b"], width=300, height=200, x_axis_label=hostile + "\x00\x1b\n")
    drawn.vbar(x=[hostile, "b"], top=[1, 2], width=0.8, legend_label=hostile)
    drawn.annular_wedge(x=[0.5], y=[1], inner_radius=0.1, outer_radius=0.2, start_angle=0, end_angle=1)
    drawn.text(x=[hostile], y=[1], text=[hostile])
    made = still(drawn, title=hostile + "\0")
    assert "<script" not in made.svg and made.left_out == ("AnnularWedge",)
    texts = texts_of(drawn)
    assert texts.count(hostile) == 3 and hostile + "  " in texts  # an axis' tick, the legend, the text, the label


def test_a_figure_without_rows_has_axes() -> None:
    drawn = figure(width=300, height=200)
    drawn.line("x", "y", source=ColumnDataSource({"x": [], "y": []}))
    assert "It has no data." in still(drawn, title="T").words
    assert [element.get("class") for element in parsed(drawn).iter("path")].count("a") == 2


def test_bars_and_texts_take_their_own_colours() -> None:
    rows = {"x": [1.0, 2.0], "top": [3.0, 4.0], "ink": ["#aa0000", "#00bb00"], "word": ["one", "<two>"]}
    drawn = figure(width=300, height=200)
    source = ColumnDataSource(rows)
    drawn.vbar("x", 0.8, "top", source=source, fill_color="ink", line_color=None)
    drawn.text("x", "top", text="word", source=source, text_color="ink", text_align="center")
    svg = parsed(drawn)
    fills = [e.get("fill") for e in svg.iter("path") if e.get("fill", "none").startswith("#")]
    assert fills == rows["ink"]
    texts = [(e.text, e.get("fill"), e.get("text-anchor")) for e in svg.iter("text") if e.get("fill")]
    assert texts == [("one", "#aa0000", "middle"), ("<two>", "#00bb00", "middle")]


def test_whole_numbers_powers_and_shares_are_written_as_such() -> None:
    from workbench.plots import confusion, heat, histogram

    columns = {"exponent": [-4.0, -3.0], "middle": [-3.5, -2.5], "share": [0.5, 0.5], "layer": ["a", "a"]}
    shown = texts_of(histogram.figure(ColumnDataSource({"step": [0, 0], "until": [1, 1], **columns})))
    assert {"2⁻⁴", "2⁻³", "2⁻²"} <= set(shown) and "100%" in shown
    cells = {
        "predicted": [0, 1],
        "true": [0, 1],
        "count": [1, 1],
        "share": [1, 1],
        "text": ["", ""],
        "ink": ["#fff"] * 2,
    }
    ticks = texts_of(confusion.figure(ColumnDataSource({**cells, "step": [1, 1]})))
    assert ticks.count("0") == ticks.count("1") == 2 and "0.5" not in ticks
    rows = {"step": [0.0, 0.0], "until": [1.0, 1.0], "row": [0.0, 1.0], "colour": [1.0, 100.0]}
    drawn = heat.new_figure("", x_label="step", y_label="rank", height=200, marks="step")
    source = ColumnDataSource({**rows, "rank": np.array([4, 7], dtype=np.float32)})
    heat.draw(source, drawn, mapper := heat.make_mapper(log=True), [])
    theme.add_colour_bar(drawn, mapper, log=True)
    shown = texts_of(drawn)
    assert {"4", "7", "1", "10", "100"} <= set(shown) and not [text for text in shown if "%" in text]


def test_the_page_colours_text_axes_and_grid() -> None:
    """The colours that stand for the page's leave the SVG as classes, in every kind of output."""
    drawn = theme.new_figure("T", x_label="step", y_label="loss")
    line = drawn.line([0, 1], [1, 2], color="#123456")
    theme.add_legend(drawn, [("train", [line])])
    svg = still(drawn, title="T").svg
    assert not [ink for ink in vars(INK).values() if ink in svg] and "<style" not in svg
    by_class = {
        name: [e for e in ET.fromstring(svg).iter() if e.get("class") == name] for name in ("a", "g", "t", "t l")
    }
    assert len(by_class["a"]) == 2 and len(by_class["g"]) >= 3
    assert {"step", "loss"} <= {e.text for e in by_class["t"]} and [e.text for e in by_class["t l"]] == ["train"]
    assert not [e for found in by_class.values() for e in found if {"fill", "stroke"} & set(e.attrib)]


def test_pictures_in_a_page_share_no_identifier_and_load_nothing() -> None:
    def drawn() -> Any:
        made = figure(width=300, height=200)
        made.scatter([1, 2, 3], [1, 2, 3], marker="triangle")
        return made

    pair = [ET.fromstring(still(drawn(), title="T").svg) for _ in range(2)]
    names = [[e.get("id") for e in svg.iter() if e.get("id")] for svg in pair]
    assert names[0] and not set(names[0]) & set(names[1])
    for svg, own in zip(pair, names, strict=True):
        links = [e.get("href", "") for e in svg.iter() if e.get("href")]
        links += re.findall(r"url\(([^)]+)\)", ET.tostring(svg, encoding="unicode"))
        assert links and {link.removeprefix("#") for link in links} <= set(own)


def test_every_glyph_has_marks_where_its_rows_are() -> None:
    x, y = [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]
    ways = {
        "step": lambda f: f.step(x, y, color="#123456"),
        "multi_line": lambda f: f.multi_line([x, x], [y, y], color="#123456"),
        "segment": lambda f: f.segment(x, y, x, [5.0] * 3, color="#123456"),
        "patch": lambda f: f.patch(x, y, color="#123456"),
        "patches": lambda f: f.patches([x], [y], color="#123456"),
        "varea": lambda f: f.varea(x, y, [0.0] * 3, color="#123456"),
        "varea_step": lambda f: f.varea_step(x, y, [0.0] * 3, color="#123456"),
        "quad": lambda f: f.quad(left=x, right=[4.0] * 3, bottom=[0.0] * 3, top=y, color="#123456"),
        "rect": lambda f: f.rect(x, y, 0.5, 0.5, color="#123456"),
        "hbar": lambda f: f.hbar(y=y, right=x, height=0.5, color="#123456"),
        "scatter": lambda f: f.scatter(x, y, color="#123456"),
        "vspan": lambda f: f.vspan(x, color="#123456"),
    }
    for name, draw in ways.items():
        drawn = figure(width=300, height=200)
        draw(drawn)
        assert still(drawn, title="T").left_out == (), name
        assert [e for e in parsed(drawn).iter() if "#123456" in e.attrib.values()], name
    drawn = figure(width=300, height=200)
    drawn.image([np.arange(6.0).reshape(2, 3)], x=0, y=0, dw=3, dh=2, palette=["#000000", "#ffffff"])
    (pixels,) = images_of(drawn)
    high, wide = np.nonzero(pixels[..., 3] == 255)
    assert pixels[high.max(), wide.min(), 0] == 0 and pixels[high.min(), wide.max(), 0] == 255


def test_a_png_has_each_figure_in_its_place() -> None:
    panes = []
    for number, colour in enumerate(("#ff0000", "#00ff00", "#0000ff")):
        drawn = figure(height=200)
        drawn.line([0, 1], [0, 1], color=colour, line_width=6)
        panes.append(Pane(figure=drawn, title=f"{number} $"))
    pixels = np.asarray(Image.open(io.BytesIO(side_by_side(panes, title="t " * 90))).convert("RGB")).astype(int)
    for colour, (down, across) in zip(np.eye(3) * 255, ((0, 0), (0, 1), (1, 0)), strict=True):
        high, wide = np.nonzero(np.abs(pixels - colour).sum(axis=2) < 60)
        assert high.size and set(wide // 450) == {across} and set((high - (pixels.shape[0] - 520)) // 260) == {down}


def test_matplotlib_waits_until_something_is_drawn() -> None:
    code = (
        "import sys, workbench; from IPython.testing.globalipapp import start_ipython;"
        "shell = start_ipython(); shell.config.Workbench.warm = False;"
        "shell.run_line_magic('load_ext', 'workbench'); import widgets.panel.panel;"
        "print('matplotlib.figure' in sys.modules, 'workbench.plots.still.picture' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert said.stdout.split() == ["False", "False"]

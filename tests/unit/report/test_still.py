"""Still pictures: what is in the SVG against the numbers that were drawn."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from bokeh.models import ColumnDataSource, LogColorMapper
from bokeh.plotting import figure

from workbench.plots import event_lines, theme
from workbench.report import marks
from workbench.report.scales import Scale, elapsed, mapped_index, plain, round_numbers
from workbench.report.still import still

SVG = "{http://www.w3.org/2000/svg}"


def parsed(drawn: object) -> ET.Element:
    svg = still(drawn, title="T").svg.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1)
    return ET.fromstring(svg)


def texts_of(drawn: object) -> list[str]:
    return [element.text or "" for element in parsed(drawn).iter(f"{SVG}text")]


def places(path: str) -> np.ndarray:
    return np.array([[float(number) for number in pair.split()] for pair in re.split("[ML]", path)[1:]])


def test_a_line_lies_where_its_numbers_say() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([3.0, 1.0, np.nan, 7.0])
    drawn = figure(width=300, height=200)
    drawn.line("x", "y", source=ColumnDataSource({"x": x, "y": y}), color="#123456")
    line = next(e for e in parsed(drawn).iter(f"{SVG}path") if e.get("stroke") == "#123456")
    assert line.get("d", "").count("M") == 2  # the NaN lifts the pen
    found = places(line.get("d", ""))
    good = np.isfinite(y)
    for axis, values in ((0, x[good]), (1, y[good])):
        slope, offset = np.polyfit(values, found[:, axis], 1)
        assert np.allclose(slope * values + offset, found[:, axis], atol=0.11)  # rounded to a tenth
        assert (slope > 0) == (axis == 0)  # up is up


def test_what_was_done_to_a_run_stands_upright_at_its_step() -> None:
    drawn = theme.new_figure("T", x_label="step", y_label="loss", marks="step")
    drawn.line("x", "y", source=ColumnDataSource({"x": [0.0, 10.0], "y": [1.0, 2.0]}), color="#123456")
    event_lines.add_marks(drawn, [{"step": step, "time": 0.0, "label": ""} for step in (0, 10)])
    line, upright = (
        next(e for e in parsed(drawn).iter(f"{SVG}path") if e.get("stroke") == colour).get("d", "")
        for colour in ("#123456", theme.MARK)
    )
    assert [float(x) for x in re.findall(r"M([\d.]+) ", upright)] == places(line)[:, 0].tolist()
    assert len(re.findall(r"V[\d.]+", upright)) == 2
    assert still(drawn, title="T").left_out == ()


def test_cutting_down_keeps_every_extreme() -> None:
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(0, 400, 20_000))
    y = random.normal(size=x.size)
    y[7_777] = 99.0
    found = places(marks.path(x, y))
    assert len(found) < 1500 and found[:, 1].max() == 99.0 and found[:, 1].min() == round(float(y.min()), 1)
    column = np.floor(x / marks.PIXEL).astype(int)
    highest = {c: round(float(y[column == c].max()), 1) for c in np.unique(column)[:40]}
    kept = np.floor(found[:, 0] / marks.PIXEL + 1e-9).astype(int)
    assert all(high in found[np.abs(kept - c) <= 1, 1] for c, high in highest.items())


def test_many_cells_are_one_picture_with_the_right_colours() -> None:
    from PIL import Image

    rows, columns = 30, 40
    values = np.arange(1.0, rows * columns + 1)
    data = {
        "left": np.tile(np.arange(columns), rows).astype(float),
        "bottom": np.repeat(np.arange(rows), columns).astype(float),
        "colour": values,
    }
    data |= {"right": data["left"] + 1, "top": data["bottom"] + 1}
    drawn = figure(width=300, height=240)
    mapper = LogColorMapper(palette=["#000000", "#ffffff"])
    fill = {"field": "colour", "transform": mapper}
    drawn.quad("left", "right", "top", "bottom", source=ColumnDataSource(data), fill_color=fill, line_color=None)
    picture = next(parsed(drawn).iter(f"{SVG}image"))
    png = base64.b64decode(picture.get("href", "").partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    high, wide = np.nonzero(pixels[..., 3])
    assert pixels[high.max(), wide.min()].tolist() == [0, 0, 0, 255]  # the lowest value, at the lower left
    assert pixels[high.min(), wide.max()].tolist() == [255, 255, 255, 255]


@pytest.mark.parametrize("kind", ["LogColorMapper", "LinearColorMapper"])
def test_a_mapper_gives_the_place_that_its_formula_gives(kind: str) -> None:
    import bokeh.models

    values = np.array([1.0, 10.0, 100.0, np.nan, 1000.0])
    mapper = getattr(bokeh.models, kind)(palette=[f"#{i:06x}" for i in range(100)], low=1, high=1000)
    share = np.log10(values) / 3 if kind.startswith("Log") else (values - 1) / 999
    expected = np.where(np.isnan(values), -1, np.minimum(99, np.floor(np.nan_to_num(share) * 100)))
    assert np.abs(mapped_index(mapper, values) - expected).max() <= 1  # a value on a border may take either side


def test_a_log_axis_has_powers_of_ten() -> None:
    scale = Scale(low=1e-4, high=1.0, start=0, end=100, log=True)
    assert [text for _, text in scale.ticks(6)] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert np.allclose(scale(np.array([1e-4, 1e-2, 1.0, 0.0])), [0, 50, 100, np.nan], equal_nan=True)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 12345), (0.1, 0.10001), (1e9, 3e9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = round_numbers(low, high, 5)
    assert 2 <= len(ticks) <= 12 and all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_numbers_on_an_axis_are_short() -> None:
    assert [plain(v) for v in (0.0, 12_000.0, 2.5e6, 0.000012, -3.0)] == ["0", "12k", "2.5M", "1.2e-5", "-3"]
    assert elapsed(3725) == "1:02:05"


def test_words_say_what_a_line_does() -> None:
    drawn = figure(x_axis_label="step", y_axis_label="loss", width=300, height=200)
    drawn.line("x", "y", source=ColumnDataSource({"x": [1, 2, 3], "y": [5.0, 1.0, 2.0]}), legend_label="each")
    words = still(drawn, title="Loss").words
    assert "loss over step" in words and "each: first 5, lowest 1, highest 5, last 2." in words


def test_hostile_labels_stay_text_and_other_glyphs_are_named() -> None:
    hostile = "<script>\"'&"
    drawn = figure(x_range=[hostile, "b"], width=300, height=200, x_axis_label=hostile)
    drawn.vbar(x=[hostile, "b"], top=[1, 2], width=0.8, legend_label=hostile)
    drawn.annular_wedge(x=[0.5], y=[1], inner_radius=0.1, outer_radius=0.2, start_angle=0, end_angle=1)
    made = still(drawn, title=hostile)
    assert "<script" not in made.svg and made.left_out == ("AnnularWedge",)
    svg = parsed(drawn)
    assert hostile in [e.text for e in svg.iter(f"{SVG}text")] and len(list(svg.iter(f"{SVG}rect"))) >= 3


def test_a_figure_without_rows_has_axes() -> None:
    drawn = figure(width=300, height=200)
    drawn.line("x", "y", source=ColumnDataSource({"x": [], "y": []}))
    assert "It has no data." in still(drawn, title="T").words and parsed(drawn) is not None


def test_colours_and_texts_come_from_their_columns() -> None:
    rows = {"x": [1, 2], "top": [1.0, 2.0], "ink": ["#aa0000", "#00bb00"], "word": ["one", "<two>"]}
    drawn = figure(width=300, height=200)
    source = ColumnDataSource(rows)
    drawn.vbar("x", 0.8, "top", source=source, fill_color="ink", line_color=None)
    drawn.text("x", "top", text="word", source=source, text_color="ink", text_align="center")
    svg = parsed(drawn)
    fills = [e.get("fill") for e in svg.iter(f"{SVG}rect") if e.get("fill", "").startswith("#")]
    assert fills == rows["ink"]
    texts = [(e.text, e.get("fill"), e.get("text-anchor")) for e in svg.iter(f"{SVG}text") if e.get("fill")]
    assert texts == [("one", "#aa0000", "middle"), ("<two>", "#00bb00", "middle")]


def test_whole_numbers_powers_and_shares_are_written_as_such() -> None:
    from workbench.plots import confusion, heat, histogram, theme

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

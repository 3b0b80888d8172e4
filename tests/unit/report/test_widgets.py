"""Conversion of ipywidgets to HTML, from states that ipywidgets writes."""

from __future__ import annotations

import json
from typing import Any

import ipywidgets as w
import pytest
from bs4 import BeautifulSoup
from markupsafe import Markup

from workbench.report.notebook.widget_html import WidgetConverter

HOSTILE = "<script>alert(1)</script>\"'"


def drawn(widget: w.Widget) -> BeautifulSoup:
    states = w.Widget.get_manager_state(widgets=None)["state"]
    page = WidgetConverter(states, lambda outputs: Markup("|".join(str(o["text"]) for o in outputs)), Markup)
    found = page.convert(widget.model_id)
    assert found is not None
    return BeautifulSoup(str(found), "html.parser")


@pytest.mark.parametrize(
    ("widget", "shown"),
    [
        (lambda: w.IntSlider(value=7, max=10), "7"),
        (lambda: w.FloatRangeSlider(value=(0.5, 2.0), max=4), "0.5 \N{EN DASH} 2"),
        (lambda: w.FloatLogSlider(value=100.0), "100"),
        (lambda: w.IntProgress(value=40), "40"),
        (lambda: w.SelectionSlider(options=["low", "high"], value="high"), "high"),
        (lambda: w.DatePicker(value=__import__("datetime").date(2026, 5, 1)), "2026-05-01"),
        (lambda: w.Label("a < b"), "a < b"),
        (lambda: w.ColorPicker(value="#ff0000"), "#ff0000"),
        (lambda: w.Valid(value=True), "✓ valid"),
        (lambda: w.ToggleButtons(options=["a", "b"]), "ab"),
        (lambda: w.Button(description="Go"), "Go"),
    ],
)
def test_a_widget_shows_its_value(widget: Any, shown: str) -> None:
    assert drawn(widget()).get_text() == shown


def test_form_elements_show_their_values_and_are_disabled() -> None:
    box = w.VBox([w.Text(HOSTILE, description="name"), w.Checkbox(True), w.Dropdown(options=["x", "y"], value="y")])
    page = drawn(box)
    assert page.find("input", type="text")["value"] == HOSTILE and page.find("script") is None
    assert page.find("input", type="checkbox").has_attr("checked")
    assert page.find("option", selected=True).text == "y"
    assert all(e.has_attr("disabled") for e in page.find_all(["input", "select"]))
    assert all(e.get("aria-label") for e in page.find_all(["input", "select"]))


def test_tabs_and_accordions_keep_their_titles_and_open_page() -> None:
    tab = w.Tab([w.Label("one"), w.Label("two")], titles=["first", HOSTILE], selected_index=1)
    page = drawn(tab)
    assert [label.text for label in page.find_all("label")] == ["first", HOSTILE]
    assert [e.has_attr("checked") for e in page.find_all("input", type="radio")] == [False, True]
    accordion = drawn(w.Accordion([w.Label("one"), w.Label("two")], titles=["A", "B"], selected_index=0))
    assert [e.has_attr("open") for e in accordion.find_all("details")] == [True, False]


def test_pictures_and_captured_output() -> None:
    assert drawn(w.Image(value=b"\x89PNG", format="png")).img["src"] == "data:image/png;base64,iVBORw=="
    caught = w.Output()
    caught.outputs = ({"output_type": "stream", "name": "stdout", "text": "inside"},)
    assert "inside" in drawn(caught).get_text()


def test_unknown_widgets_are_not_converted() -> None:
    page = WidgetConverter({"a": {"model_name": "SomebodysModel", "state": {}}}, lambda _: Markup(""), Markup)
    assert page.convert("a") is None and page.convert("gone") is None


def test_a_box_that_contains_itself_is_converted() -> None:
    state = {"a": {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_a"]}}}
    assert WidgetConverter(state, lambda _: Markup(""), Markup).convert("a") is not None


def test_linked_widgets_are_enabled_and_listed() -> None:
    slider, progress, other = w.IntSlider(value=3), w.IntProgress(value=3), w.IntSlider(value=1)
    made = [w.jslink((slider, "value"), (progress, "value")), w.jsdlink((slider, "max"), (other, "max"))]
    states = w.Widget.get_manager_state(widgets=None)["state"]
    page = WidgetConverter(states, lambda _: Markup(""), Markup)
    assert {"source": slider.model_id, "target": progress.model_id, "both": True} in page.links
    assert not [link for link in page.links if other.model_id in link.values()]  # only links of values are supported
    shown = [BeautifulSoup(str(page.convert(each.model_id)), "html.parser") for each in (slider, progress, other)]
    assert [bool(one.find(attrs={"data-model": True})) for one in shown] == [True, True, False]
    assert not shown[0].input.has_attr("disabled") and shown[2].input.has_attr("disabled") and len(made) == 2
    still = WidgetConverter(states, lambda _: Markup(""), Markup, light=True)
    assert BeautifulSoup(str(still.convert(slider.model_id)), "html.parser").input.has_attr("disabled")
    assert still.links == []


def test_choices_are_linked_by_their_index() -> None:
    first, second = w.Dropdown(options=["x", "y"]), w.SelectionSlider(options=["low", HOSTILE])
    button = w.ToggleButton(True)
    made = [w.jslink((first, "index"), (second, "index")), w.jslink((first, "disabled"), (button, "value"))]
    states = w.Widget.get_manager_state(widgets=None)["state"]
    page = WidgetConverter(states, lambda _: Markup(""), Markup)
    mine = [link for link in page.links if first.model_id in link.values()]
    assert mine == [{"source": first.model_id, "target": second.model_id, "both": True}] and len(made) == 2
    shown = BeautifulSoup(str(page.convert(second.model_id)), "html.parser")
    assert json.loads(shown.input["data-options"]) == ["low", HOSTILE]
    assert not BeautifulSoup(str(page.convert(first.model_id)), "html.parser").select_one("select").has_attr("disabled")
    pressed = BeautifulSoup(str(page.convert(button.model_id)), "html.parser").button
    assert pressed["aria-pressed"] == "true" and pressed.has_attr("disabled")

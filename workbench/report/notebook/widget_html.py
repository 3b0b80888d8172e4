"""Converts ipywidgets to HTML from the widget state that a notebook contains. Needs no kernel and no network.

Tabs and accordions work, and so do the links that ``jslink`` makes (by ``notebook.js``). All other widgets show their
last value and are disabled.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

STATE_TYPE = "application/vnd.jupyter.widget-state+json"
VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
#: prefix of a model id in the state of another widget
_MODEL_PREFIX = "IPY_MODEL_"
#: levels of nested containers; this also ends a container that contains itself
_MAX_DEPTH = 40
_RANGE_DASH = " \N{EN DASH} "


def read_widget_states(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The widget states in the metadata of a notebook: model id -> ``{"model_name": ..., "state": {...}}``."""
    saved = metadata.get("widgets", {})
    table = saved.get(STATE_TYPE, {}) if isinstance(saved, Mapping) else {}
    return dict(table.get("state", {})) if isinstance(table, Mapping) else {}


class WidgetConverter:
    """Converts the widgets of one notebook to HTML.

    ``states``: as ``read_widget_states`` returns them. ``convert_outputs``: converts the outputs that an Output widget
    captured. ``clean``: makes HTML self-contained. ``light``: the page has no scripts, so links do not work.

    ``links``: the ``jslink`` and ``jsdlink`` links between widgets, each with ``source`` and ``target`` (model ids) and
    ``both`` (whether the link works in both directions).
    """

    def __init__(
        self,
        states: Mapping[str, Any],
        convert_outputs: Callable[[list[Any]], Markup],
        clean: Callable[[str], Markup],
        *,
        light: bool = False,
    ) -> None:
        self._states = states
        self._convert_outputs = convert_outputs
        self._clean = clean
        self.links = [] if light else list(_find_links(states))
        self._linked_ids = {model_id for link in self.links for model_id in (link["source"], link["target"])}
        self._tab_numbers = itertools.count(1)

    def convert(self, model_id: str) -> Markup | None:
        """The HTML of a widget; None if its state is not in the notebook or its type is not supported."""
        return self._convert(model_id, 0)

    def _convert(self, model_id: str, depth: int) -> Markup | None:
        model = self._states.get(model_id)
        if not isinstance(model, Mapping) or depth > _MAX_DEPTH:
            return None
        kind = str(model.get("model_name", "")).removesuffix("Model")
        state = _State({**_decode_buffers(model), **model.get("state", {})})
        if kind in _CONTAINERS:
            return self._convert_container(kind, state, depth)
        if kind == "Output":
            return Markup('<div class="w-output">{}</div>').format(
                self._convert_outputs(list(state.get("outputs", [])))
            )
        state["_linked"] = model_id in self._linked_ids
        html = _convert_leaf(kind, state, self._clean)
        if html is None:
            return None
        html = _add_label(state, html)
        return Markup('<div data-model="{}">{}</div>').format(model_id, html) if state["_linked"] else html

    def _convert_container(self, kind: str, state: _State, depth: int) -> Markup:
        children = [
            self._convert(str(child).removeprefix(_MODEL_PREFIX), depth + 1)
            or Markup('<p class="empty">a widget that this report cannot show</p>')
            for child in state.get("children", [])
        ]
        titles = _read_titles(state, len(children))
        selected = state.get("selected_index")
        if kind == "Accordion":
            parts = [
                Markup("<details{}><summary>{}</summary>{}</details>").format(
                    Markup(" open") if index == selected else "", title, child
                )
                for index, (title, child) in enumerate(zip(titles, children, strict=True))
            ]
            return Markup('<div class="w-accordion">{}</div>').format(Markup("").join(parts))
        if kind == "Tab":
            return self._convert_tabs(titles, children, selected if isinstance(selected, int) else 0)
        if kind == "Stack":
            children = [child for index, child in enumerate(children) if index == selected]
        css_class = {"HBox": "w-row", "GridBox": "w-grid"}.get(kind, "w-column")
        return Markup('<div class="{}">{}</div>').format(css_class, Markup("").join(children))

    def _convert_tabs(self, titles: list[str], children: list[Markup], selected: int) -> Markup:
        """Tabs made of radio buttons, which work without a script and with the keyboard."""
        name = f"w-tabs-{next(self._tab_numbers)}"
        parts = [
            Markup(
                '<input type="radio" name="{0}" id="{0}-{1}"{2}><label for="{0}-{1}">{3}</label>'
                '<div class="w-page">{4}</div>'
            ).format(name, index, Markup(" checked") if index == selected else "", title, child)
            for index, (title, child) in enumerate(zip(titles, children, strict=True))
        ]
        return Markup('<div class="w-tabs" role="group" aria-label="Tabs">{}</div>').format(Markup("").join(parts))


class _State(dict[str, Any]):
    """The state of a widget. Values that equal their default may be missing."""

    def text(self, name: str) -> str:
        value = self.get(name)
        return "" if value is None else str(value)

    def number(self, name: str, default: float) -> float:
        value = self.get(name)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _find_links(states: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The links between widgets that ``notebook.js`` can carry out: see ``WidgetConverter.links``."""
    for model in states.values():
        kind = str(model.get("model_name", "")) if isinstance(model, Mapping) else ""
        if kind not in ("LinkModel", "DirectionalLinkModel"):
            continue
        ends = [model.get("state", {}).get(name) or ["", ""] for name in ("source", "target")]
        ids = [str(end[0]).removeprefix(_MODEL_PREFIX) for end in ends]
        kinds = [str(states.get(each, {}).get("model_name", "")).removesuffix("Model") for each in ids]
        if all(end[1] == _LINKABLE.get(each) for end, each in zip(ends, kinds, strict=True)):
            yield {"source": ids[0], "target": ids[1], "both": kind == "LinkModel"}


def _decode_buffers(model: Mapping[str, Any]) -> dict[str, Any]:
    """The binary values of a state, such as pictures: name -> bytes."""
    values = {}
    for buffer in model.get("buffers", []) or []:
        path = buffer.get("path") or []
        if len(path) == 1 and buffer.get("encoding") == "base64":
            values[str(path[0])] = base64.b64decode(buffer.get("data", ""))
    return values


def _read_titles(state: _State, count: int) -> list[str]:
    """The titles of the pages of a container. ipywidgets 7 stored them in ``_titles``, by index."""
    titles = state.get("titles")
    if not titles:
        old = state.get("_titles") or {}
        titles = [old.get(str(index)) for index in range(count)] if isinstance(old, Mapping) else []
    padded = [*list(titles or []), *[None] * count][:count]
    return [str(title) if title else str(index + 1) for index, title in enumerate(padded)]


def _add_label(state: _State, html: Markup) -> Markup:
    description = state.text("description")
    if not description or state.get("_has_own_label"):
        return Markup('<div class="w-line">{}</div>').format(html)
    label = description if not state.get("description_allow_html") else Markup(description)
    return Markup('<div class="w-line"><span class="w-label mathful">{}</span>{}</div>').format(label, html)


def _convert_leaf(kind: str, state: _State, clean: Callable[[str], Markup]) -> Markup | None:
    for kinds, convert in _LEAVES:
        if kind in kinds:
            return convert(kind, state, clean)
    return None


def _disabled(state: _State) -> Markup:
    return Markup("" if state.get("_linked") else " disabled")


def _input(type_: str, value: Any, state: _State, **attributes: Any) -> Markup:
    attributes_html = Markup("").join(
        Markup(' {}="{}"').format(name.replace("_", "-"), attribute)
        for name, attribute in attributes.items()
        if attribute not in (None, "")
    )
    name = state.text("description") or type_
    return Markup('<input type="{}" value="{}" aria-label="{}"{}{}>').format(
        type_, value, name, _disabled(state), attributes_html
    )


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _convert_slider(kind: str, state: _State, _clean: Any) -> Markup:
    value = state.get("value", 0)
    low, high = state.number("min", 0), state.number("max", 10 if "Log" not in kind else 4)
    if isinstance(value, (list, tuple)):
        text = _RANGE_DASH.join(_number_text(part) for part in value)
        parts = [_input("range", part, state, min=low, max=high, step="any") for part in value]
        return Markup('<span class="w-range">{}</span><output>{}</output>').format(Markup("").join(parts), text)
    position = value
    if "Log" in kind and isinstance(value, (int, float)) and value > 0:
        import math

        position = math.log(value, state.number("base", 10.0))
    return Markup("{}<output>{}</output>").format(
        _input("range", position, state, min=low, max=high, step=state.get("step") or "any"), _number_text(value)
    )


def _convert_progress(_kind: str, state: _State, _clean: Any) -> Markup:
    low, high = state.number("min", 0), state.number("max", 100)
    value = state.number("value", 0)
    share = (value - low) / (high - low) if high > low else 0
    template = '<progress value="{:.4f}" max="1" aria-label="{}" data-low="{}" data-high="{}">{}</progress>'
    name = state.text("description") or "progress"
    return Markup(template).format(share, name, low, high, _number_text(state.get("value", 0)))


def _convert_text(kind: str, state: _State, _clean: Any) -> Markup:
    value = state.text("value")
    if kind == "Textarea":
        name = state.text("description") or "text"
        return Markup('<textarea rows="3" aria-label="{}"{}>{}</textarea>').format(name, _disabled(state), value)
    if kind == "Password":
        value = "•" * len(value)
    return _input("text", value, state)


def _convert_check(kind: str, state: _State, _clean: Any) -> Markup:
    checked = bool(state.get("value"))
    if kind == "Valid":
        return Markup("<span>{}</span>").format("✓ valid" if checked else f"✗ {state.text('readout') or 'invalid'}")
    return _input("checkbox", "", state, checked="checked" if checked else None)


def _options(state: _State) -> list[str]:
    return [str(option) for option in state.get("_options_labels") or []]


def _convert_select(kind: str, state: _State, _clean: Any) -> Markup:
    index = state.get("index")
    selected = set(index) if isinstance(index, (list, tuple)) else {index}
    labels = _options(state)
    if kind in ("SelectionSlider", "SelectionRangeSlider"):
        ends = [labels[i] for i in sorted(i for i in selected if isinstance(i, int)) if i < len(labels)]
        position = min((i for i in selected if isinstance(i, int)), default=0)
        options = json.dumps(labels, ensure_ascii=False) if state.get("_linked") else None
        return Markup("{}<output>{}</output>").format(
            _input("range", position, state, min=0, max=max(0, len(labels) - 1), data_options=options),
            _RANGE_DASH.join(ends),
        )
    if kind in ("RadioButtons", "ToggleButtons"):
        css_class = "w-toggle" if kind == "ToggleButtons" else "w-radio"
        parts = [
            Markup('<span class="{}{}">{}</span>').format(css_class, " chosen" if i in selected else "", label)
            for i, label in enumerate(labels)
        ]
        return Markup('<span class="w-choices">{}</span>').format(Markup("").join(parts))
    size = "" if kind == "Dropdown" else Markup(' size="{}"').format(min(6, max(2, len(labels))))
    if kind == "SelectMultiple":
        size += Markup(" multiple")
    items = [
        Markup("<option{}>{}</option>").format(Markup(" selected") if i in selected else "", label)
        for i, label in enumerate(labels)
    ]
    return Markup('<select aria-label="{}"{}{}>{}</select>').format(
        state.text("description") or "choice", _disabled(state), size, Markup("").join(items)
    )


def _convert_html(kind: str, state: _State, clean: Callable[[str], Markup]) -> Markup:
    value = state.text("value")
    content = escape(value) if kind == "Label" else clean(value)
    return Markup('<div class="w-html{}">{}</div>').format(" mathful" if kind != "HTML" else "", content)


def _convert_button(kind: str, state: _State, _clean: Any) -> Markup:
    text = state.text("description") or state.text("icon") or "button"
    state["_has_own_label"] = True
    pressed = Markup(' aria-pressed="{}"').format("true" if state.get("value") else "false")
    return Markup('<button type="button"{}{}>{}</button>').format(
        _disabled(state), pressed if kind == "ToggleButton" else "", text
    )


def _convert_media(kind: str, state: _State, _clean: Any) -> Markup | None:
    value = state.get("value")
    if not isinstance(value, bytes):
        return None
    file_format = state.text("format") or {"Image": "png", "Video": "mp4", "Audio": "mp3"}[kind]
    major = {"Image": "image", "Video": "video", "Audio": "audio"}[kind]
    minor = {"svg": "svg+xml", "jpg": "jpeg", "mp3": "mpeg"}.get(file_format, file_format)
    source = f"data:{major}/{minor};base64,{base64.b64encode(value).decode()}"
    if kind == "Image":
        return Markup('<img src="{}" alt="{}">').format(
            source, state.text("description") or "picture of an Image widget"
        )
    return Markup('<{0} src="{1}" controls></{0}>').format(major, source)


def _convert_plain(kind: str, state: _State, _clean: Any) -> Markup:
    value = state.get("value")
    if isinstance(value, Mapping):  # a date: the month counts from 0
        parts = [value.get("year"), (value.get("month") or 0) + 1, value.get("date")]
        text = "-".join(f"{part:02d}" for part in parts if isinstance(part, int))
        clock = [value.get(name) for name in ("hours", "minutes")]
        value = " ".join(
            filter(None, [text if parts[0] else "", ":".join(f"{part:02d}" for part in clock if isinstance(part, int))])
        )
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(part) for part in value)
    if kind == "ColorPicker":
        return Markup('<span class="w-colour" style="background: {}"></span><output>{}</output>').format(
            value or "black", value or "black"
        )
    return Markup("<output>{}</output>").format("" if value is None else value)


#: types of widgets whose links notebook.js can carry out -> the linked property
_LINKABLE = {
    **dict.fromkeys(
        ("IntSlider", "FloatSlider", "IntProgress", "FloatProgress", "IntText", "FloatText", "BoundedIntText",
         "BoundedFloatText", "Text", "Textarea", "Checkbox", "ToggleButton", "Label", "HTML"),
        "value",
    ),
    **dict.fromkeys(("Dropdown", "Select", "SelectionSlider"), "index"),
}  # fmt: skip
_CONTAINERS = (
    "Box",
    "HBox",
    "VBox",
    "GridBox",
    "Tab",
    "Accordion",
    "Stack",
    "TwoByTwoLayout",
    "AppLayout",
    "GridspecLayout",
)
_Convert = Callable[[str, _State, Callable[[str], Markup]], Markup | None]
_LEAVES: tuple[tuple[tuple[str, ...], _Convert], ...] = (
    (("IntSlider", "FloatSlider", "FloatLogSlider", "IntRangeSlider", "FloatRangeSlider", "Play"), _convert_slider),
    (("IntProgress", "FloatProgress"), _convert_progress),
    (("Text", "Textarea", "Password", "Combobox"), _convert_text),
    (("IntText", "FloatText", "BoundedIntText", "BoundedFloatText"), _convert_text),
    (("Checkbox", "Valid"), _convert_check),
    (
        ("Dropdown", "Select", "SelectMultiple", "RadioButtons", "ToggleButtons", "SelectionSlider",
         "SelectionRangeSlider"),
        _convert_select,
    ),
    (("HTML", "HTMLMath", "Label"), _convert_html),
    (("Button", "ToggleButton"), _convert_button),
    (("Image", "Video", "Audio"), _convert_media),
    (
        ("ColorPicker", "DatePicker", "TimePicker", "NaiveDatetimePicker", "DatetimePicker", "TagsInput", "ColorsInput",
         "FloatsInput", "IntsInput", "FileUpload"),
        _convert_plain,
    ),
)  # fmt: skip

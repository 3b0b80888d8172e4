"""ipywidgets as plain HTML: what a saved notebook's widget state showed, with no kernel and no network.

Tabs and accordions still open and close, and what ``jslink`` ties together still moves together (``notebook.js``);
everything that would need the kernel is shown with its value, switched off.
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
_REFERENCE = "IPY_MODEL_"
_DEEPEST = 40
_TO = " \N{EN DASH} "


def states_of(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The widget states that a notebook's metadata hold: model id -> model_name and state."""
    saved = metadata.get("widgets", {})
    table = saved.get(STATE_TYPE, {}) if isinstance(saved, Mapping) else {}
    return dict(table.get("state", {})) if isinstance(table, Mapping) else {}


class WidgetPage:
    """Draws widgets of one notebook. ``outputs(list of outputs)`` draws what an Output widget caught. ``light``: no
    script will run, so none moves with another."""

    def __init__(
        self,
        states: Mapping[str, Any],
        outputs: Callable[[list[Any]], Markup],
        clean: Callable[[str], Markup],
        *,
        light: bool = False,
    ) -> None:
        self._states = states
        self._outputs = outputs
        self._clean = clean
        self.links = [] if light else list(_links(states))
        self._linked = {end for link in self.links for end in (link["source"], link["target"])}
        self._numbers = itertools.count(1)

    def draw(self, model_id: str) -> Markup | None:
        """The widget; None when its state was not saved or it is of a kind that is not known here."""
        return self._draw(model_id, 0)

    def _draw(self, model_id: str, depth: int) -> Markup | None:
        model = self._states.get(model_id)
        if not isinstance(model, Mapping) or depth > _DEEPEST:
            return None
        kind = str(model.get("model_name", "")).removesuffix("Model")
        state = _State({**_bytes(model), **model.get("state", {})})
        if kind in _CONTAINERS:
            return self._container(kind, state, depth)
        if kind == "Output":
            return Markup('<div class="w-output">{}</div>').format(self._outputs(list(state.get("outputs", []))))
        state["_live"] = model_id in self._linked
        drawn = _leaf(kind, state, self._clean)
        if drawn is None:
            return None
        shown = _labelled(state, drawn)
        return Markup('<div data-model="{}">{}</div>').format(model_id, shown) if state["_live"] else shown

    def _container(self, kind: str, state: _State, depth: int) -> Markup:
        children = [
            self._draw(str(child).removeprefix(_REFERENCE), depth + 1)
            or Markup('<p class="empty">a widget that is not shown here</p>')
            for child in state.get("children", [])
        ]
        titles = _titles(state, len(children))
        chosen = state.get("selected_index")
        if kind == "Accordion":
            parts = [
                Markup("<details{}><summary>{}</summary>{}</details>").format(
                    Markup(" open") if place == chosen else "", title, child
                )
                for place, (title, child) in enumerate(zip(titles, children, strict=True))
            ]
            return Markup('<div class="w-accordion">{}</div>').format(Markup("").join(parts))
        if kind == "Tab":
            return self._tabs(titles, children, chosen if isinstance(chosen, int) else 0)
        if kind == "Stack":
            children = [child for place, child in enumerate(children) if place == chosen]
        look = {"HBox": "w-row", "GridBox": "w-grid"}.get(kind, "w-column")
        return Markup('<div class="{}">{}</div>').format(look, Markup("").join(children))

    def _tabs(self, titles: list[str], children: list[Markup], chosen: int) -> Markup:
        """Tabs by radio buttons: they switch without a script, and by keyboard."""
        name = f"w-tabs-{next(self._numbers)}"
        parts = [
            Markup(
                '<input type="radio" name="{0}" id="{0}-{1}"{2}><label for="{0}-{1}">{3}</label>'
                '<div class="w-page">{4}</div>'
            ).format(name, place, Markup(" checked") if place == chosen else "", title, child)
            for place, (title, child) in enumerate(zip(titles, children, strict=True))
        ]
        return Markup('<div class="w-tabs" role="group" aria-label="Tabs">{}</div>').format(Markup("").join(parts))


class _State(dict[str, Any]):
    """A widget's state; what was left out as a default reads as None."""

    def text(self, name: str) -> str:
        value = self.get(name)
        return "" if value is None else str(value)

    def number(self, name: str, default: float) -> float:
        value = self.get(name)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _links(states: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Values that the front end keeps alike by itself: source, target (model ids), and whether it goes both ways."""
    for model in states.values():
        kind = str(model.get("model_name", "")) if isinstance(model, Mapping) else ""
        if kind not in ("LinkModel", "DirectionalLinkModel"):
            continue
        ends = [model.get("state", {}).get(name) or ["", ""] for name in ("source", "target")]
        ids = [str(end[0]).removeprefix(_REFERENCE) for end in ends]
        kinds = [str(states.get(each, {}).get("model_name", "")).removesuffix("Model") for each in ids]
        if all(end[1] == _LINKABLE.get(each) for end, each in zip(ends, kinds, strict=True)):
            yield {"source": ids[0], "target": ids[1], "both": kind == "LinkModel"}


def _bytes(model: Mapping[str, Any]) -> dict[str, Any]:
    """Binary parts of a state (pictures): name -> bytes."""
    found = {}
    for buffer in model.get("buffers", []) or []:
        path = buffer.get("path") or []
        if len(path) == 1 and buffer.get("encoding") == "base64":
            found[str(path[0])] = base64.b64decode(buffer.get("data", ""))
    return found


def _titles(state: _State, count: int) -> list[str]:
    """Titles of pages; ipywidgets 7 kept them as ``_titles`` by number."""
    titles = state.get("titles")
    if not titles:
        old = state.get("_titles") or {}
        titles = [old.get(str(place)) for place in range(count)] if isinstance(old, Mapping) else []
    padded = [*list(titles or []), *[None] * count][:count]
    return [str(title) if title else str(place + 1) for place, title in enumerate(padded)]


def _labelled(state: _State, drawn: Markup) -> Markup:
    description = state.text("description")
    if not description or state.get("_has_own_label"):
        return Markup('<div class="w-line">{}</div>').format(drawn)
    label = description if not state.get("description_allow_html") else Markup(description)
    return Markup('<div class="w-line"><span class="w-label mathful">{}</span>{}</div>').format(label, drawn)


def _leaf(kind: str, state: _State, clean: Callable[[str], Markup]) -> Markup | None:
    for ending, draw in _LEAVES:
        if kind in ending:
            return draw(kind, state, clean)
    return None


def _off(state: _State) -> Markup:
    return Markup("" if state.get("_live") else " disabled")


def _input(type_: str, value: Any, state: _State, **attributes: Any) -> Markup:
    more = Markup("").join(
        Markup(' {}="{}"').format(name.replace("_", "-"), given)
        for name, given in attributes.items()
        if given not in (None, "")
    )
    name = state.text("description") or type_
    return Markup('<input type="{}" value="{}" aria-label="{}"{}{}>').format(type_, value, name, _off(state), more)


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _slider(kind: str, state: _State, _clean: Any) -> Markup:
    value = state.get("value", 0)
    low, high = state.number("min", 0), state.number("max", 10 if "Log" not in kind else 4)
    if isinstance(value, (list, tuple)):
        text = _TO.join(_number_text(part) for part in value)
        parts = [_input("range", part, state, min=low, max=high, step="any") for part in value]
        return Markup('<span class="w-range">{}</span><output>{}</output>').format(Markup("").join(parts), text)
    place = value
    if "Log" in kind and isinstance(value, (int, float)) and value > 0:
        import math

        place = math.log(value, state.number("base", 10.0))
    return Markup("{}<output>{}</output>").format(
        _input("range", place, state, min=low, max=high, step=state.get("step") or "any"), _number_text(value)
    )


def _progress(_kind: str, state: _State, _clean: Any) -> Markup:
    low, high = state.number("min", 0), state.number("max", 100)
    value = state.number("value", 0)
    share = (value - low) / (high - low) if high > low else 0
    look = '<progress value="{:.4f}" max="1" aria-label="{}" data-low="{}" data-high="{}">{}</progress>'
    name = state.text("description") or "progress"
    return Markup(look).format(share, name, low, high, _number_text(state.get("value", 0)))


def _text(kind: str, state: _State, _clean: Any) -> Markup:
    value = state.text("value")
    if kind == "Textarea":
        name = state.text("description") or "text"
        return Markup('<textarea rows="3" aria-label="{}"{}>{}</textarea>').format(name, _off(state), value)
    if kind == "Password":
        value = "•" * len(value)
    return _input("text", value, state)


def _check(kind: str, state: _State, _clean: Any) -> Markup:
    on = bool(state.get("value"))
    if kind == "Valid":
        return Markup("<span>{}</span>").format("✓ valid" if on else f"✗ {state.text('readout') or 'invalid'}")
    return _input("checkbox", "", state, checked="checked" if on else None)


def _options(state: _State) -> list[str]:
    return [str(option) for option in state.get("_options_labels") or []]


def _select(kind: str, state: _State, _clean: Any) -> Markup:
    index = state.get("index")
    chosen = set(index) if isinstance(index, (list, tuple)) else {index}
    labels = _options(state)
    if kind in ("SelectionSlider", "SelectionRangeSlider"):
        ends = [labels[place] for place in sorted(p for p in chosen if isinstance(p, int)) if place < len(labels)]
        at = min((p for p in chosen if isinstance(p, int)), default=0)
        words = json.dumps(labels, ensure_ascii=False) if state.get("_live") else None
        return Markup("{}<output>{}</output>").format(
            _input("range", at, state, min=0, max=max(0, len(labels) - 1), data_options=words), _TO.join(ends)
        )
    if kind in ("RadioButtons", "ToggleButtons"):
        look = "w-toggle" if kind == "ToggleButtons" else "w-radio"
        parts = [
            Markup('<span class="{}{}">{}</span>').format(look, " chosen" if place in chosen else "", label)
            for place, label in enumerate(labels)
        ]
        return Markup('<span class="w-choices">{}</span>').format(Markup("").join(parts))
    size = "" if kind == "Dropdown" else Markup(' size="{}"').format(min(6, max(2, len(labels))))
    if kind == "SelectMultiple":
        size += Markup(" multiple")
    items = [
        Markup("<option{}>{}</option>").format(Markup(" selected") if place in chosen else "", label)
        for place, label in enumerate(labels)
    ]
    return Markup('<select aria-label="{}"{}{}>{}</select>').format(
        state.text("description") or "choice", _off(state), size, Markup("").join(items)
    )


def _html(kind: str, state: _State, clean: Callable[[str], Markup]) -> Markup:
    value = state.text("value")
    inside = escape(value) if kind == "Label" else clean(value)
    return Markup('<div class="w-html{}">{}</div>').format(" mathful" if kind != "HTML" else "", inside)


def _button(kind: str, state: _State, _clean: Any) -> Markup:
    text = state.text("description") or state.text("icon") or "button"
    state["_has_own_label"] = True
    pressed = Markup(' aria-pressed="{}"').format("true" if state.get("value") else "false")
    return Markup('<button type="button"{}{}>{}</button>').format(
        _off(state), pressed if kind == "ToggleButton" else "", text
    )


def _media(kind: str, state: _State, _clean: Any) -> Markup | None:
    value = state.get("value")
    if not isinstance(value, bytes):
        return None
    form = state.text("format") or {"Image": "png", "Video": "mp4", "Audio": "mp3"}[kind]
    major = {"Image": "image", "Video": "video", "Audio": "audio"}[kind]
    minor = {"svg": "svg+xml", "jpg": "jpeg", "mp3": "mpeg"}.get(form, form)
    source = f"data:{major}/{minor};base64,{base64.b64encode(value).decode()}"
    if kind == "Image":
        return Markup('<img src="{}" alt="{}">').format(
            source, state.text("description") or "picture of an Image widget"
        )
    return Markup('<{0} src="{1}" controls></{0}>').format(major, source)


def _plain(kind: str, state: _State, _clean: Any) -> Markup:
    value = state.get("value")
    if isinstance(value, Mapping):  # dates: year, month from 0, date
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


#: kinds that a script can make follow one another, and by what
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
_Draw = Callable[[str, _State, Callable[[str], Markup]], Markup | None]
_LEAVES: tuple[tuple[tuple[str, ...], _Draw], ...] = (
    (("IntSlider", "FloatSlider", "FloatLogSlider", "IntRangeSlider", "FloatRangeSlider", "Play"), _slider),
    (("IntProgress", "FloatProgress"), _progress),
    (("Text", "Textarea", "Password", "Combobox"), _text),
    (("IntText", "FloatText", "BoundedIntText", "BoundedFloatText"), _text),
    (("Checkbox", "Valid"), _check),
    (
        ("Dropdown", "Select", "SelectMultiple", "RadioButtons", "ToggleButtons", "SelectionSlider",
         "SelectionRangeSlider"),
        _select,
    ),
    (("HTML", "HTMLMath", "Label"), _html),
    (("Button", "ToggleButton"), _button),
    (("Image", "Video", "Audio"), _media),
    (
        ("ColorPicker", "DatePicker", "TimePicker", "NaiveDatetimePicker", "DatetimePicker", "TagsInput", "ColorsInput",
         "FloatsInput", "IntsInput", "FileUpload"),
        _plain,
    ),
)  # fmt: skip

"""Cells of a notebook as HTML parts: prose, code, and each output by the richest of its forms that works offline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from workbench.report.notebook import bokeh_output, clean
from workbench.report.notebook.widget_html import VIEW_TYPE, WidgetPage, states_of

#: key of our own in the metadata of an output that showed a panel: ``{"runs": [path, ...]}``
PANEL_KEY = "dist_workbench"
_PANEL_TEXT = re.compile(r"Live panel of (\S+)")
_BOKEH_EXEC = "application/vnd.bokehjs_exec.v0+json"
_BOKEH_LOAD = "application/vnd.bokehjs_load.v0+json"
_FOLDED_TAGS = frozenset({"hide-input", "hide_input", "hide-cell", "hide_cell"})
_LONGEST_STREAM = 200_000


@dataclass(kw_only=True)
class Cell:
    """One cell. ``kind``: markdown, code or raw; ``source`` and ``outputs`` are HTML; ``count``: its number, or ""."""

    kind: str
    source: Markup
    outputs: list[Markup] = field(default_factory=list)
    count: str = ""
    folded: bool = False
    id: str = ""


class Cells:
    """Turns the cells of one notebook into parts.

    ``panel(what)`` draws a live panel's output from what its metadata say of it (None: nothing is known of its run, and
    the saved form stays). ``light``: no script will run. After drawing, ``bokeh`` says whether a Bokeh output is there,
    and ``bokeh_parts`` what it needs.
    """

    def __init__(
        self,
        notebook: Any,
        folder: Path | None,
        panel: Callable[[Mapping[str, Any]], Markup | None],
        *,
        light: bool = False,
    ) -> None:
        self._notebook = notebook
        self._folder = folder
        self._panel = panel
        self._light = light
        self._widgets = WidgetPage(states_of(notebook.metadata), self._caught, self._clean, light=light)
        self.bokeh = False
        self.bokeh_parts: set[str] = set()

    @property
    def links(self) -> list[dict[str, Any]]:
        """Widgets that move together."""
        return self._widgets.links

    def draw(self) -> list[Cell]:
        """Every cell, in order."""
        return [self._cell(cell) for cell in self._notebook.cells]

    def _clean(self, source: str) -> Markup:
        return clean.html(source, folder=self._folder)

    def _cell(self, cell: Any) -> Cell:
        kind, source = cell.cell_type, _joined(cell.source)
        if kind == "markdown":
            drawn = clean.markdown(source, attachments=cell.get("attachments"), folder=self._folder)
            return Cell(kind=kind, source=drawn, id=str(cell.get("id", "")))
        if kind != "code":
            return Cell(kind="raw", source=Markup("<pre>{}</pre>").format(source), id=str(cell.get("id", "")))
        tags = set(cell.metadata.get("tags", []))
        folded = bool(tags & _FOLDED_TAGS) or bool(cell.metadata.get("jupyter", {}).get("source_hidden"))
        return Cell(
            kind=kind,
            source=self._highlighted(source),
            outputs=[drawn for output in cell.get("outputs", []) if (drawn := self._output(output))],
            count="" if cell.get("execution_count") is None else str(cell["execution_count"]),
            folded=folded,
            id=str(cell.get("id", "")),
        )

    def _highlighted(self, source: str) -> Markup:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import get_lexer_by_name
        from pygments.util import ClassNotFound

        language = self._notebook.metadata.get("language_info", {}).get("pygments_lexer", "ipython3")
        try:
            lexer = get_lexer_by_name(str(language), stripnl=False)
        except ClassNotFound:
            lexer = get_lexer_by_name("text", stripnl=False)
        return Markup(highlight(source, lexer, HtmlFormatter(nowrap=True)))

    def _caught(self, outputs: list[Any]) -> Markup:
        return Markup("").join(self._output(output) for output in outputs if isinstance(output, Mapping))

    def _output(self, output: Any) -> Markup:
        kind = output.get("output_type")
        if kind == "stream":
            return _stream(_joined(output.get("text", "")), str(output.get("name", "stdout")))
        if kind == "error":
            return _error(output)
        return self._display(output.get("data", {}), output.get("metadata", {}))

    def _display(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Markup:
        """The richest form: a panel, a widget, a Bokeh figure, HTML, a picture, text."""
        special = self._frozen(data, metadata) or self._widget(data)
        if special is not None:
            return special
        if _BOKEH_LOAD in data:
            return Markup("")  # the file brings BokehJS itself
        if _BOKEH_EXEC in data:
            return self._bokeh(_joined(data.get("application/javascript") or data.get(_BOKEH_EXEC) or ""))
        for mime, draw in self._FORMS:
            if mime in data:
                return draw(self, data, mime, metadata.get(mime, {}))
        return Markup("")

    def _frozen(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Markup | None:
        about = _panel_of(data, metadata)
        return None if about is None else self._panel(about)

    def _widget(self, data: Mapping[str, Any]) -> Markup | None:
        view = data.get(VIEW_TYPE)
        if not isinstance(view, Mapping):
            return None
        widget = self._widgets.draw(str(view.get("model_id", "")))
        if widget is not None:
            return Markup('<div class="widget">{}</div>').format(widget)
        return _lost_widget(data) if set(data) <= {VIEW_TYPE, "text/plain"} else None

    def _html(self, data: Mapping[str, Any], mime: str, _about: Any) -> Markup:
        source = _joined(data[mime])
        if "bk-notebook-logo" in source:
            return Markup("")  # "Loading BokehJS"
        return Markup('<div class="html scroll" tabindex="0">{}</div>').format(self._clean(source))

    def _markdown(self, data: Mapping[str, Any], mime: str, _about: Any) -> Markup:
        return Markup('<div class="prose">{}</div>').format(clean.markdown(_joined(data[mime]), folder=self._folder))

    def _latex(self, data: Mapping[str, Any], mime: str, _about: Any) -> Markup:
        return Markup('<div class="mathful">{}</div>').format(_joined(data[mime]))

    def _svg(self, data: Mapping[str, Any], mime: str, _about: Any) -> Markup:
        return Markup('<div class="drawing">{}</div>').format(self._clean(_joined(data[mime])))

    def _picture(self, data: Mapping[str, Any], mime: str, about: Any) -> Markup:
        return _picture(mime, _joined(data[mime]), about, _joined(data.get("text/plain", "")))

    def _json(self, data: Mapping[str, Any], mime: str, _about: Any) -> Markup:
        return Markup('<pre tabindex="0">{}</pre>').format(json.dumps(data[mime], indent=2, ensure_ascii=False))

    def _plain(self, data: Mapping[str, Any], mime: str, _about: Any) -> Markup:
        return Markup('<pre tabindex="0">{}</pre>').format(_ansi(_joined(data[mime])))

    def _bokeh(self, script: str) -> Markup:
        if self._light:
            return bokeh_output.pictures(script)
        self.bokeh = True
        self.bokeh_parts |= bokeh_output.parts_of(script)
        return bokeh_output.interactive(script)

    _FORMS: tuple[tuple[str, Callable[..., Markup]], ...] = (
        ("text/html", _html),
        ("image/svg+xml", _svg),
        ("text/markdown", _markdown),
        ("text/latex", _latex),
        ("image/png", _picture),
        ("image/jpeg", _picture),
        ("image/gif", _picture),
        ("image/webp", _picture),
        ("application/json", _json),
        ("text/plain", _plain),
    )


def _panel_of(data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What an output says of the panel that it showed; None when it showed none."""
    about = metadata.get(PANEL_KEY)
    if isinstance(about, Mapping):
        return about
    found = _PANEL_TEXT.fullmatch(_joined(data.get("text/plain", "")).strip())
    return {"runs": [found[1]]} if found and VIEW_TYPE in data else None


def _joined(text: Any) -> str:
    """Notebooks may keep a text as a list of its lines."""
    return "".join(map(str, text)) if isinstance(text, (list, tuple)) else str(text)


def _lost_widget(data: Mapping[str, Any]) -> Markup:
    text = _joined(data.get("text/plain", "a widget"))
    return Markup(
        '<div class="widget"><p class="empty">A widget whose state the notebook does not hold: {}</p></div>'
    ).format(text[:400])


def _ansi(text: str) -> Markup:
    from nbconvert.filters import ansi2html

    return Markup(ansi2html(text))


def _stream(text: str, name: str) -> Markup:
    if len(text) > _LONGEST_STREAM:
        text = f"{text[:_LONGEST_STREAM]}\n… ({len(text):,} characters)"
    look = "stream stderr" if name == "stderr" else "stream"
    return Markup('<pre class="{}" tabindex="0">{}</pre>').format(look, _ansi(text)) if text else Markup("")


def _error(output: Mapping[str, Any]) -> Markup:
    trace = "\n".join(map(str, output.get("traceback") or [])) or f"{output.get('ename')}: {output.get('evalue')}"
    return Markup('<pre class="stream error" tabindex="0" role="group" aria-label="Error">{}</pre>').format(
        _ansi(trace)
    )


def _picture(mime: str, data: str, about: Any, text: str) -> Markup:
    size = Markup("")
    if isinstance(about, Mapping) and isinstance(about.get("width"), (int, float)):
        size = Markup(' style="width: {}px"').format(round(about["width"]))
    alt = text if text and not text.startswith("<") else f"picture: {text.strip('<>') or mime}"
    return Markup('<img class="output-picture" src="data:{};base64,{}" alt="{}"{}>').format(
        mime, escape(re.sub(r"\s+", "", data)), alt[:500], size
    )

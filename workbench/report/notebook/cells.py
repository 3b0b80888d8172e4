"""Converts the cells of a notebook to HTML. Each output is shown in its richest format that needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from workbench.report.notebook import bokeh_output, clean
from workbench.report.notebook.widget_html import VIEW_TYPE, WidgetConverter, read_widget_states

#: key in the metadata of an output that shows a panel; its value is ``{"runs": [path, ...]}``
PANEL_KEY = "dist_workbench"
_PANEL_TEXT = re.compile(r"Live panel of (\S+)")
_BOKEH_EXEC = "application/vnd.bokehjs_exec.v0+json"
_BOKEH_LOAD = "application/vnd.bokehjs_load.v0+json"
_FOLDED_TAGS = frozenset({"hide-input", "hide_input", "hide-cell", "hide_cell"})
_MAX_STREAM_LENGTH = 200_000


@dataclass(kw_only=True)
class Cell:
    """A cell of the report.

    ``kind``: ``markdown``, ``code`` or ``raw``. ``source`` and ``outputs`` are HTML. ``count``: the execution count, or
    "". ``folded``: the source is hidden at first.
    """

    kind: str
    source: Markup
    outputs: list[Markup] = field(default_factory=list)
    count: str = ""
    folded: bool = False
    id: str = ""


class CellConverter:
    """Converts the cells of one notebook to HTML.

    ``draw_panel(metadata)`` returns the HTML of a live panel, or None if its runs are not found; then the saved output
    is shown. ``light``: the page has no scripts. After ``convert``, ``has_bokeh`` says whether an interactive Bokeh
    output is among the outputs, and ``bokeh_components`` which components of BokehJS these need besides the core.
    """

    def __init__(
        self,
        notebook: Any,
        folder: Path | None,
        draw_panel: Callable[[Mapping[str, Any]], Markup | None],
        *,
        light: bool = False,
    ) -> None:
        self._notebook = notebook
        self._folder = folder
        self._draw_panel = draw_panel
        self._light = light
        self._widgets = WidgetConverter(
            read_widget_states(notebook.metadata), self._convert_captured, self._clean, light=light
        )
        self.has_bokeh = False
        self.bokeh_components: set[str] = set()

    @property
    def links(self) -> list[dict[str, Any]]:
        """The links between widgets: see ``WidgetConverter.links``."""
        return self._widgets.links

    def convert(self) -> list[Cell]:
        """Convert every cell, in order."""
        return [self._convert_cell(cell) for cell in self._notebook.cells]

    def _clean(self, source: str) -> Markup:
        return clean.clean_html(source, folder=self._folder)

    def _convert_cell(self, cell: Any) -> Cell:
        kind, source = cell.cell_type, _join_lines(cell.source)
        if kind == "markdown":
            html = clean.markdown_to_html(source, attachments=cell.get("attachments"), folder=self._folder)
            return Cell(kind=kind, source=html, id=str(cell.get("id", "")))
        if kind != "code":
            return Cell(kind="raw", source=Markup("<pre>{}</pre>").format(source), id=str(cell.get("id", "")))
        tags = set(cell.metadata.get("tags", []))
        folded = bool(tags & _FOLDED_TAGS) or bool(cell.metadata.get("jupyter", {}).get("source_hidden"))
        return Cell(
            kind=kind,
            source=self._highlight(source),
            outputs=[html for output in cell.get("outputs", []) if (html := self._convert_output(output))],
            count="" if cell.get("execution_count") is None else str(cell["execution_count"]),
            folded=folded,
            id=str(cell.get("id", "")),
        )

    def _highlight(self, source: str) -> Markup:
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

    def _convert_captured(self, outputs: list[Any]) -> Markup:
        """The outputs that an Output widget captured."""
        return Markup("").join(self._convert_output(output) for output in outputs if isinstance(output, Mapping))

    def _convert_output(self, output: Any) -> Markup:
        kind = output.get("output_type")
        if kind == "stream":
            return _stream_html(_join_lines(output.get("text", "")), str(output.get("name", "stdout")))
        if kind == "error":
            return _error_html(output)
        return self._convert_display(output.get("data", {}), output.get("metadata", {}))

    def _convert_display(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Markup:
        """A display output in its richest format, in this order: panel, widget, Bokeh figure, the MIME types below."""
        html = self._convert_panel(data, metadata) or self._convert_widget(data)
        if html is not None:
            return html
        if _BOKEH_LOAD in data:
            return Markup("")  # the report contains BokehJS
        if _BOKEH_EXEC in data:
            return self._convert_bokeh(_join_lines(data.get("application/javascript") or data.get(_BOKEH_EXEC) or ""))
        for mime, convert in self._CONVERTERS:
            if mime in data:
                return convert(self, data, mime, metadata.get(mime, {}))
        return Markup("")

    def _convert_panel(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Markup | None:
        panel_metadata = _find_panel_metadata(data, metadata)
        return None if panel_metadata is None else self._draw_panel(panel_metadata)

    def _convert_widget(self, data: Mapping[str, Any]) -> Markup | None:
        view = data.get(VIEW_TYPE)
        if not isinstance(view, Mapping):
            return None
        widget = self._widgets.convert(str(view.get("model_id", "")))
        if widget is not None:
            return Markup('<div class="widget">{}</div>').format(widget)
        return _missing_widget(data) if set(data) <= {VIEW_TYPE, "text/plain"} else None

    def _convert_html(self, data: Mapping[str, Any], mime: str, _metadata: Any) -> Markup:
        source = _join_lines(data[mime])
        if "bk-notebook-logo" in source:
            return Markup("")  # the message "Loading BokehJS"
        return Markup('<div class="html scroll" tabindex="0">{}</div>').format(self._clean(source))

    def _convert_markdown(self, data: Mapping[str, Any], mime: str, _metadata: Any) -> Markup:
        return Markup('<div class="prose">{}</div>').format(
            clean.markdown_to_html(_join_lines(data[mime]), folder=self._folder)
        )

    def _convert_latex(self, data: Mapping[str, Any], mime: str, _metadata: Any) -> Markup:
        return Markup('<div class="mathful">{}</div>').format(_join_lines(data[mime]))

    def _convert_svg(self, data: Mapping[str, Any], mime: str, _metadata: Any) -> Markup:
        return Markup('<div class="drawing">{}</div>').format(self._clean(_join_lines(data[mime])))

    def _convert_picture(self, data: Mapping[str, Any], mime: str, metadata: Any) -> Markup:
        return _picture_html(mime, _join_lines(data[mime]), metadata, _join_lines(data.get("text/plain", "")))

    def _convert_json(self, data: Mapping[str, Any], mime: str, _metadata: Any) -> Markup:
        return Markup('<pre tabindex="0">{}</pre>').format(json.dumps(data[mime], indent=2, ensure_ascii=False))

    def _convert_plain(self, data: Mapping[str, Any], mime: str, _metadata: Any) -> Markup:
        return Markup('<pre tabindex="0">{}</pre>').format(_ansi_to_html(_join_lines(data[mime])))

    def _convert_bokeh(self, script: str) -> Markup:
        if self._light:
            return bokeh_output.static_html(script)
        self.has_bokeh = True
        self.bokeh_components |= bokeh_output.find_components(script)
        return bokeh_output.interactive_html(script)

    _CONVERTERS: tuple[tuple[str, Callable[..., Markup]], ...] = (
        ("text/html", _convert_html),
        ("image/svg+xml", _convert_svg),
        ("text/markdown", _convert_markdown),
        ("text/latex", _convert_latex),
        ("image/png", _convert_picture),
        ("image/jpeg", _convert_picture),
        ("image/gif", _convert_picture),
        ("image/webp", _convert_picture),
        ("application/json", _convert_json),
        ("text/plain", _convert_plain),
    )


def _find_panel_metadata(data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The metadata of the panel in an output: ``{"runs": [path, ...]}``. None if the output is not a panel."""
    panel_metadata = metadata.get(PANEL_KEY)
    if isinstance(panel_metadata, Mapping):
        return panel_metadata
    match = _PANEL_TEXT.fullmatch(_join_lines(data.get("text/plain", "")).strip())
    return {"runs": [match[1]]} if match and VIEW_TYPE in data else None


def _join_lines(text: Any) -> str:
    """A text of a notebook, which may be stored as a list of lines."""
    return "".join(map(str, text)) if isinstance(text, (list, tuple)) else str(text)


def _missing_widget(data: Mapping[str, Any]) -> Markup:
    text = _join_lines(data.get("text/plain", "a widget"))
    return Markup(
        '<div class="widget"><p class="empty">The notebook does not contain the state of this widget: {}</p></div>'
    ).format(text[:400])


def _ansi_to_html(text: str) -> Markup:
    from nbconvert.filters import ansi2html

    return Markup(ansi2html(text))


def _stream_html(text: str, name: str) -> Markup:
    if len(text) > _MAX_STREAM_LENGTH:
        text = f"{text[:_MAX_STREAM_LENGTH]}\n… ({len(text):,} characters)"
    css_class = "stream stderr" if name == "stderr" else "stream"
    return (
        Markup('<pre class="{}" tabindex="0">{}</pre>').format(css_class, _ansi_to_html(text)) if text else Markup("")
    )


def _error_html(output: Mapping[str, Any]) -> Markup:
    trace = "\n".join(map(str, output.get("traceback") or [])) or f"{output.get('ename')}: {output.get('evalue')}"
    return Markup('<pre class="stream error" tabindex="0" role="group" aria-label="Error">{}</pre>').format(
        _ansi_to_html(trace)
    )


def _picture_html(mime: str, data: str, metadata: Any, text: str) -> Markup:
    size = Markup("")
    if isinstance(metadata, Mapping) and isinstance(metadata.get("width"), (int, float)):
        size = Markup(' style="width: {}px"').format(round(metadata["width"]))
    alt = text if text and not text.startswith("<") else f"picture: {text.strip('<>') or mime}"
    return Markup('<img class="output-picture" src="data:{};base64,{}" alt="{}"{}>').format(
        mime, escape(re.sub(r"\s+", "", data)), alt[:500], size
    )

"""Static Bokeh figures that need no network: the kernel sends BokehJS to the page, and the notebook does not store it.

Kernel to browser (custom messages): ``bokeh`` (buffer 0 is BokehJS, gzipped; ``version``), then ``figures``
(``figures``: title, height, item; ``colours``). Browser to kernel: ``hello`` (``have``: the BokehJS version it has).
The output also has a picture, which viewers without widgets show.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import anywidget

from widgets.page import bundle, wire
from workbench.plots import theme


class FiguresWidget(anywidget.AnyWidget):
    """The browser side: a script, no state."""

    _esm = bundle.script("overlay", ("text", "page", "link", "reload"))


class StaticFigures:
    """Bokeh figures in a widget. ``picture``: a PNG of the same figures, for viewers without widgets."""

    def __init__(self, figures: Sequence[Any], *, picture: bytes, title: str) -> None:
        from bokeh.embed import json_item

        self.title = title
        self._picture = picture
        self._items = [
            {"title": figure.title.text, "height": figure.height, "item": json_item(figure)} for figure in figures
        ]
        self.widget = FiguresWidget()
        self.widget.on_msg(self._on_message)

    def show(self) -> None:
        """Display the figures in the current cell's output."""
        from IPython.display import publish_display_data

        view = {"version_major": 2, "version_minor": 1, "model_id": self.widget.model_id}
        data = {
            "text/plain": self.title,
            "image/png": base64.b64encode(self._picture).decode(),
            "application/vnd.jupyter.widget-view+json": view,
        }
        publish_display_data(data)

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict) or content.get("kind") != "hello":
            return
        version = wire.bokeh_version()
        if content.get("have") != version:
            self.widget.send({"kind": "bokeh", "version": version}, [wire.bokeh_js()])
        self.widget.send({"kind": "figures", "figures": self._items, "colours": theme.COLOURS})

"""Converts Bokeh outputs of a notebook to interactive figures, or to static pictures for a page without scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from workbench.plots.still.picture import still
from workbench.report.figures import compress_text

#: what precedes the JSON of the figures in the script of an output
_DOCUMENTS_MARK = "docs_json = "
_NOT_STATIC = "This Bokeh output has no static picture. The interactive report shows it."


def find_components(script: str) -> set[str]:
    """The components of BokehJS that the script of an output needs besides the core."""
    from bokeh.models import widgets

    names = set(re.findall(r'"name":"(\w+)"', script))
    tables = {name for name in names if "Table" in name or name.endswith(("Formatter", "Editor"))}
    if tables & {"DataTable", "DataCube", "TableColumn"}:
        return {"widgets", "tables"}
    return {"widgets"} if names & set(vars(widgets)) else set()


def interactive_html(script: str) -> Markup:
    """The script of an output in compressed form. ``notebook.js`` runs it once BokehJS is loaded."""
    return Markup('<script type="text/plain" class="bokeh-output">{}</script>').format(compress_text(script))


def static_html(script: str) -> Markup:
    """Static pictures of the figures of an output, or a sentence if there are none."""
    pictures = Markup("").join(map(_picture_html, _read_figures(script)))
    return pictures or Markup('<p><em class="gone">{}</em></p>').format(_NOT_STATIC)


def _read_figures(script: str) -> Iterator[Any]:
    """The Bokeh figures in the script of an output; none if this version of Bokeh cannot read them."""
    from bokeh.document import Document
    from bokeh.models import Plot

    start = script.find(_DOCUMENTS_MARK)
    if start < 0:
        return
    try:
        documents, _ = json.JSONDecoder().raw_decode(script, start + len(_DOCUMENTS_MARK))
        for document in documents.values():
            for root in Document.from_json(document).roots:
                yield from root.select({"type": Plot})
    except (ValueError, AttributeError, TypeError, KeyError):
        return  # written by another version of Bokeh or by an extension that is not installed


def _picture_html(figure: Any) -> Markup:
    title = str(getattr(figure.title, "text", "") or "") or "Bokeh figure"
    try:
        picture = still(figure, title=title)
    except Exception as error:  # figures are the user's own: one that fails must not end the report
        return Markup('<p><em class="gone">The static picture of {} could not be drawn: {}</em></p>').format(
            title, error
        )
    note = Markup('<p class="empty">The static picture does not show: {}.</p>').format(", ".join(picture.left_out))
    return Markup(
        '<figure class="bokeh-still"><figcaption>{}</figcaption><div class="picture">{}</div>{}</figure>'
    ).format(title, Markup(picture.svg), note if picture.left_out else "")

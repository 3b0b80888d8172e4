"""Bokeh outputs of a notebook: interactive on the file's own BokehJS, or, where no script runs, as still pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from workbench.plots.still.picture import still
from workbench.report.figures import packed

_DOCUMENTS = "docs_json = "
_NOT_HERE = "an interactive Bokeh output is not in a report without scripts: the interactive report shows it"


def parts_of(script: str) -> set[str]:
    """Which parts of BokehJS beside its core an output's script needs."""
    from bokeh.models import widgets

    names = set(re.findall(r'"name":"(\w+)"', script))
    tables = {name for name in names if "Table" in name or name.endswith(("Formatter", "Editor"))}
    if tables & {"DataTable", "DataCube", "TableColumn"}:
        return {"widgets", "tables"}
    return {"widgets"} if names & set(vars(widgets)) else set()


def interactive(script: str) -> Markup:
    """The output's script, to run once the file's own BokehJS is unpacked."""
    return Markup('<script type="text/plain" class="bokeh-output">{}</script>').format(packed(script))


def pictures(script: str) -> Markup:
    """The figures of an output, drawn still; in words what cannot be."""
    drawn = Markup("").join(map(_picture, _figures(script)))
    return drawn or Markup('<p><em class="gone">{}</em></p>').format(_NOT_HERE)


def _figures(script: str) -> Iterator[Any]:
    from bokeh.document import Document
    from bokeh.models import Plot

    at = script.find(_DOCUMENTS)
    if at < 0:
        return
    try:
        documents, _ = json.JSONDecoder().raw_decode(script, at + len(_DOCUMENTS))
        for written in documents.values():
            for root in Document.from_json(written).roots:
                yield from root.select({"type": Plot})
    except (ValueError, AttributeError, TypeError, KeyError):
        return  # of another version of Bokeh, or of an extension that is not here


def _picture(figure: Any) -> Markup:
    title = str(getattr(figure.title, "text", "") or "") or "Bokeh figure"
    try:
        found = still(figure, title=title)
    except Exception as error:  # a figure of anybody's: the reader is told, and has the rest
        return Markup('<p><em class="gone">{} could not be drawn still: {}</em></p>').format(title, error)
    note = Markup('<p class="empty">The still picture leaves out: {}.</p>').format(", ".join(found.left_out))
    return Markup(
        '<figure class="bokeh-still"><figcaption>{}</figcaption><div class="picture">{}</div>{}</figure>'
    ).format(title, Markup(found.svg), note if found.left_out else "")

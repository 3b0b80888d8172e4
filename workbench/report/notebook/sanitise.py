"""Removes from the HTML of Markdown what JupyterLab removes: scripts, event handlers, and elements that load or run.

The lists are those of JupyterLab 4 (``packages/apputils/src/sanitizer.ts``). JupyterLab sanitises Markdown in every
notebook, but not the outputs of a notebook that the user trusts; the report does the same.
"""

from __future__ import annotations

from functools import cache

import nh3

_TAGS = """
a abbr acronym address area article aside audio b bdi bdo big blockquote br button canvas caption center cite code col
colgroup data datalist dd del details dfn dir div dl dt em fieldset figcaption figure font footer form h1 h2 h3 h4 h5 h6
header hgroup hr i img input ins kbd label legend li map mark menu meter nav nobr ol optgroup option output p pre
progress q s samp section select small source span strike strong sub summary sup table tbody td textarea tfoot th thead
time tr track tt u ul var video wbr
"""
_CELL = "abbr align axis bgcolor char charoff colspan headers height nowrap rowspan scope valign width"
_COLUMN = "align char charoff span valign width"
_MEDIA = "autoplay controls loop muted preload src"
_ATTRIBUTES = {
    "*": "class dir draggable hidden id inert itemprop itemref itemscope lang spellcheck style title translate",
    "a": "accesskey coords href hreflang shape tabindex target type",
    "area": "accesskey alt coords href nohref shape tabindex",
    "audio": _MEDIA,
    "blockquote": "cite",
    "br": "clear",
    "button": "accesskey disabled tabindex type value",
    "canvas": "height width",
    "caption": "align",
    "col": _COLUMN,
    "colgroup": _COLUMN,
    "data": "value",
    "del": "cite datetime",
    "details": "open",
    "div": "align",
    "fieldset": "disabled",
    "font": "color face size",
    **dict.fromkeys(["h1", "h2", "h3", "h4", "h5", "h6", "p"], "align"),
    "hr": "align noshade size width",
    "img": "align alt border height hspace ismap src usemap vspace width",
    "input": "accesskey align alt checked disabled max maxlength min placeholder readonly size tabindex type value",
    "ins": "cite datetime",
    "label": "accesskey for",
    "legend": "accesskey align",
    "li": "type value",
    "meter": "high low max min value",
    "ol": "compact reversed start type",
    "optgroup": "disabled label",
    "option": "disabled label selected value",
    "output": "for",
    "pre": "width",
    "progress": "max min value",
    "q": "cite",
    "select": "disabled multiple required size tabindex",
    "source": "src type",
    "table": "align bgcolor border cellpadding cellspacing frame rules summary width",
    "td": _CELL,
    "textarea": "cols disabled placeholder readonly rows tabindex wrap",
    "th": _CELL,
    **dict.fromkeys(["tbody", "tfoot", "thead"], "align char charoff valign"),
    "tr": "align bgcolor char charoff valign",
    "track": "default kind label srclang",
    "ul": "compact type",
    "video": f"{_MEDIA} height width",
}
#: elements that are removed with their content; of others that are not allowed, the content stays
_REMOVED_WITH_CONTENT = frozenset({"script", "style", "noscript", "template", "title"})
_EMBEDDED = frozenset({"img", "audio", "video", "source"})


def sanitise(html: str) -> str:
    """Return HTML without scripts, event handlers and elements that JupyterLab removes from Markdown.

    Pictures, sounds and films that are embedded as ``data:`` URLs stay; a link to such an address does not.
    """
    return _cleaner().clean(html)


@cache
def _cleaner() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=set(_TAGS.split()),
        clean_content_tags=set(_REMOVED_WITH_CONTENT),
        attributes={tag: set(names.split()) for tag, names in _ATTRIBUTES.items()},
        attribute_filter=_drop_embedded_links,
        url_schemes=nh3.ALLOWED_URL_SCHEMES | {"data", "blob"},
    )


def _drop_embedded_links(tag: str, name: str, value: str) -> str | None:
    """Return the value of an attribute, or None to drop it."""
    is_embedded = value.strip().lower().startswith(("data:", "blob:"))
    return None if is_embedded and tag not in _EMBEDDED else value

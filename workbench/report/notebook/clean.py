"""Makes Markdown and HTML of a notebook self-contained: embeds local pictures, replaces remote content by links."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markupsafe import Markup

from workbench.report.notebook.sanitise import sanitise

_ATTACHMENT = "attachment:"
_REMOTE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
_REMOTE_CSS = re.compile(r"@import[^;]*;|url\(\s*['\"]?(?:https?:)?//[^)]*\)", re.IGNORECASE)
_HAS_EXTERNAL_TAG = re.compile(
    r"<\s*(script|link|img|iframe|video|audio|source|object|embed|style|base|meta)\b", re.IGNORECASE
)
_LOADERS = {"script": "src", "link": "href", "iframe": "src", "object": "data", "embed": "src"}
#: bytes; a larger local file is not embedded
MAX_EMBEDDED_BYTES = 20 * 2**20


def markdown_to_html(
    source: str, *, attachments: Mapping[str, Any] | None = None, folder: Path | None = None
) -> Markup:
    """Convert Markdown to self-contained, sanitised HTML. A formula becomes an element of class ``math`` with its TeX.

    ``attachments``: the pictures attached to the cell. ``folder``: where local pictures are looked for.
    """
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """Puts every formula into its own element, so that other text with dollar signs is not taken for a formula."""

        def inline_math(self, body: str) -> str:
            return f'<span class="math">{self.escape_html(body)}</span>'

        def block_math(self, body: str) -> str:
            return f'<span class="math block">{self.escape_html(body)}</span>'

        def latex_environment(self, name: str, body: str) -> str:
            name = self.escape_html(name)
            return f'<span class="math block">\\begin{{{name}}}{self.escape_html(body)}\\end{{{name}}}</span>'

        def _embed_image_or_attachment(self, src: str) -> str:
            return src  # embedded by ``clean_html``, as those of HTML tags are

    renderer = Renderer(escape=False, exclude_anchor_links=True)
    html = MarkdownWithMath(renderer=renderer).render(source)
    return Markup(sanitise(clean_html(str(html), attachments=attachments, folder=folder)))


def clean_html(source: str, *, attachments: Mapping[str, Any] | None = None, folder: Path | None = None) -> Markup:
    """Make HTML self-contained, so that showing it loads nothing from the network or from other files.

    Local pictures below ``folder`` and ``attachments`` are embedded. Remote content is replaced by a link. Inline
    scripts are kept.
    """
    if not _HAS_EXTERNAL_TAG.search(source):
        return Markup(source)
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(source, "html.parser")
    for name, attribute in _LOADERS.items():
        for element in soup.find_all(name):
            address = str(element.get(attribute) or "")
            if address and not address.startswith(("data:", "#")):
                element.replace_with(_make_note(soup, address, name))
    for element in soup.find_all(["base", "meta"]):
        element.decompose()
    for element in soup.find_all(["img", "video", "audio", "source"]):
        _embed_or_replace(soup, element, attachments or {}, folder)
    for element in soup.find_all("style"):
        element.string = _REMOTE_CSS.sub("", element.get_text())
    for element in soup.find_all(style=_REMOTE_CSS):
        element["style"] = _REMOTE_CSS.sub("", str(element["style"]))
    return Markup(str(soup))


def _embed_or_replace(soup: Any, element: Any, attachments: Mapping[str, Any], folder: Path | None) -> None:
    for attribute in ("srcset", "poster"):
        if element.has_attr(attribute):
            del element[attribute]
    address = str(element.get("src") or "")
    if element.name == "img" and not element.has_attr("alt"):
        element["alt"] = "picture" if address.startswith("data:") else Path(unquote(address)).name
    if not address or address.startswith(("data:", "blob:")):
        return
    if address.lower().startswith(_ATTACHMENT):
        name = unquote(address[len(_ATTACHMENT) :])
        data = _attachment_url(attachments.get(name))
        if data is None:
            note = soup.new_tag("em", attrs={"class": "gone"})
            note.append(f"picture {element.get('alt') or name} is missing")
            element.replace_with(note)
            return
    else:
        data = None if _REMOTE.match(address) else _read_data_url(address, folder)
    if data is None:
        element.replace_with(_make_note(soup, address, "picture" if element.name == "img" else element.name))
    else:
        element["src"] = data


def _attachment_url(attachment: Mapping[str, Any] | None) -> str | None:
    """An attachment (MIME type -> base64 text) as a ``data:`` URL, preferably a drawing; None if it is missing."""
    if not attachment:
        return None
    mime = next((each for each in ("image/svg+xml", "image/png", "image/jpeg") if each in attachment), None)
    mime = mime or next(iter(attachment))
    data = attachment[mime]
    return f"data:{mime};base64,{''.join(data) if isinstance(data, list) else data}"


def _read_data_url(address: str, folder: Path | None) -> str | None:
    """A local file as a ``data:`` URL; None if it does not exist, is too large, or is not below ``folder``."""
    if folder is None or ":" in address.split("/", maxsplit=1)[0]:
        return None
    path = (folder / unquote(address.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0])).resolve()
    try:
        if not path.is_relative_to(folder.resolve()) or path.stat().st_size > MAX_EMBEDDED_BYTES:
            return None
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return None


def _make_note(soup: Any, address: str, what: str) -> Any:
    """A note in place of content that is not in the report, with a link to it if it is remote."""
    note = soup.new_tag("em", attrs={"class": "gone"})
    note.append(f"{what} not included: ")
    if _REMOTE.match(address):
        link = soup.new_tag("a", href=address, rel="noopener noreferrer")
        link.append(address if len(address) <= 100 else address[:100] + "…")
        note.append(link)
    else:
        note.append(address[:100])
    return note

"""Markdown and HTML of a notebook, made to stand in one file: local pictures go in, what the network would have to
bring is left out and named."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from markupsafe import Markup

_REMOTE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
_STYLE_REMOTE = re.compile(r"@import[^;]*;|url\(\s*['\"]?(?:https?:)?//[^)]*\)", re.IGNORECASE)
_HOLDS_MORE = re.compile(
    r"<\s*(script|link|img|iframe|video|audio|source|object|embed|style|base|meta)\b", re.IGNORECASE
)
_LOADERS = {"script": "src", "link": "href", "iframe": "src", "object": "data", "embed": "src"}
LARGEST_PICTURE = 20 * 2**20


def markdown(source: str, *, attachments: Mapping[str, Any] | None = None, folder: Path | None = None) -> Markup:
    """Markdown as HTML; formulas keep their TeX between their own marks in elements of class ``math``."""
    from nbconvert.filters.markdown_mistune import InvalidNotebook, IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """Formulas in elements of their own, so that nothing else is taken for one."""

        def inline_math(self, body: str) -> str:
            return f'<span class="math">{self.escape_html(body)}</span>'

        def block_math(self, body: str) -> str:
            return f'<span class="math block">{self.escape_html(body)}</span>'

        def latex_environment(self, name: str, body: str) -> str:
            name = self.escape_html(name)
            return f'<span class="math block">\\begin{{{name}}}{self.escape_html(body)}\\end{{{name}}}</span>'

        def image(self, text: str, url: str, title: str | None = None) -> str:
            try:
                return super().image(text, url, title)
            except InvalidNotebook:  # its attachment is gone: the reader is told, and has the rest
                return f'<em class="gone">picture {self.escape_html(text or url)} is missing</em>'

    renderer = Renderer(escape=False, exclude_anchor_links=True, attachments=dict(attachments or {}))
    return html(str(MarkdownWithMath(renderer=renderer).render(source)), folder=folder)


def html(source: str, *, folder: Path | None = None) -> Markup:
    """HTML of the notebook's author (scripts in it stay) with nothing that asks the network or another file."""
    if not _HOLDS_MORE.search(source):
        return Markup(source)
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(source, "html.parser")
    for name, attribute in _LOADERS.items():
        for element in soup.find_all(name):
            address = str(element.get(attribute) or "")
            if address and not address.startswith(("data:", "#")):
                element.replace_with(_note(soup, address, name))
    for element in soup.find_all(["base", "meta"]):
        element.decompose()
    for element in soup.find_all(["img", "video", "audio", "source"]):
        _embed(soup, element, folder)
    for element in soup.find_all("style"):
        element.string = _STYLE_REMOTE.sub("", element.get_text())
    for element in soup.find_all(style=_STYLE_REMOTE):
        element["style"] = _STYLE_REMOTE.sub("", str(element["style"]))
    return Markup(str(soup))


def _embed(soup: Any, element: Any, folder: Path | None) -> None:
    for attribute in ("srcset", "poster"):
        if element.has_attr(attribute):
            del element[attribute]
    address = str(element.get("src") or "")
    if element.name == "img" and not element.has_attr("alt"):
        element["alt"] = "picture" if address.startswith("data:") else Path(unquote(address)).name
    if not address or address.startswith(("data:", "blob:")):
        return
    data = None if _REMOTE.match(address) else _data_of(address, folder)
    if data is None:
        element.replace_with(_note(soup, address, "picture" if element.name == "img" else element.name))
    else:
        element["src"] = data


def _data_of(address: str, folder: Path | None) -> str | None:
    """A local file as a data address; None when it is not there, too large, or not below the notebook's folder."""
    if folder is None or ":" in address.split("/", maxsplit=1)[0]:
        return None
    path = (folder / unquote(address.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0])).resolve()
    try:
        if not path.is_relative_to(folder.resolve()) or path.stat().st_size > LARGEST_PICTURE:
            return None
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    except OSError:
        return None


def _note(soup: Any, address: str, what: str) -> Any:
    """Words in place of what is not in this file; a link, so that who has a network can go there."""
    note = soup.new_tag("em", attrs={"class": "gone"})
    note.append(f"{what} not in this file: ")
    if _REMOTE.match(address):
        link = soup.new_tag("a", href=address, rel="noopener noreferrer")
        link.append(address if len(address) <= 100 else address[:100] + "…")
        note.append(link)
    else:
        note.append(address[:100])
    return note

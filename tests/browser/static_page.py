"""A panel in a bare page: the same script, style and feed as in a notebook, with no Jupyter between them.

For what needs no notebook: pictures of every tab at any number of ranks, what a page shows, and long soaks.
"""

from __future__ import annotations

import base64
import json
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from widgets.page import bundle
from widgets.panel.feed import Feed
from workbench.telemetry.store import Store

_HTML = """<!doctype html><meta charset="utf-8"><title>panel</title><style>{css}</style>
<body style="margin:8px;background:{back}"><div id="panel"></div></body>"""
_START = """async (code) => {
  const module = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  const callbacks = new Set();
  const model = {
    get: () => "static",
    send: (content) => window.toKernel(content),
    on: (name, act) => name === "msg:custom" && callbacks.add(act),
    off: (_name, act) => callbacks.delete(act),
  };
  window.fromKernel = (content, buffers) => {
    const views = buffers.map((text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
    for (const act of callbacks) act(content, views);
  };
  module.default.initialize({ model });
  window.render = (el) => module.default.render({ model, el });
  window.takeOutputAway = window.render(document.getElementById("panel"));
}"""


class StaticPanel:
    """Feeds of ``paths`` shown in ``page`` (of playwright). ``pump`` moves messages both ways; use it to wait."""

    def __init__(
        self,
        page: Any,
        *paths: Path,
        dark: bool = False,
        on_control: Callable[[str, Any], str | None] | None = None,
        status: Callable[[], str] | None = None,
        start: bool = True,
    ) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.messages: list[tuple[dict[str, Any], int]] = []
        self.drawn = 0  # the last message that the page has drawn
        self._out: queue.Queue[tuple[dict[str, Any], list[bytes]]] = queue.Queue()
        self._on_control = on_control
        names = [path.name for path in paths]
        self.feeds = [
            Feed(
                Store(path),
                self._send,
                run=place,
                names=names,
                can_control=on_control is not None,
                status=status if place == 0 else None,
            )
            for place, path in enumerate(paths)
        ]
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: self.requests.append(request.url))
        page.expose_function("toKernel", self._take)
        page.set_content(_HTML.format(css=bundle.style(), back="#111418" if dark else "#ffffff"))
        for feed in self.feeds if start else ():
            feed.start()
        page.evaluate(_START, bundle.script())

    def _send(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        self._out.put((json.loads(json.dumps(content, allow_nan=False)), buffers))

    def _take(self, content: dict[str, Any]) -> None:
        kind, place = content["kind"], content.get("run", 0)
        if kind == "hello":
            for number, feed in enumerate(self.feeds):
                feed.hello(content["have"] if number == 0 else "3")
        elif kind in ("ack", "look"):
            self.drawn = max(self.drawn, content.get("seq", 0))
            for number, feed in enumerate(self.feeds):
                feed.look(content["views"], content.get("seq") if number == place else None)
        elif kind == "choose":
            for what in ("rank", "layer", "logged"):
                if what in content:
                    self.feeds[place].choose(what, content[what])
        elif kind == "control" and self._on_control is not None:
            error = self._on_control(content["name"], content["value"])
            self._send({"kind": "answer", "run": place, "name": content["name"], "error": error}, [])

    def pump(
        self, until: str | Callable[[], bool] = "() => false", timeout_s: float = 300, *, fails: bool = True
    ) -> None:
        """Deliver messages until a condition holds (JavaScript in the page, or Python here)."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self._deliver():
                self.page.wait_for_timeout(50)
            if self.page.evaluate(until) if isinstance(until, str) else until():
                return
        assert not fails, f"it did not happen within {timeout_s} s: {until}; errors: {self.errors}"

    def lose(self, count: int) -> None:
        """Let the next messages go lost, as when a connection breaks."""
        for _ in range(count):
            self._out.get(timeout=300)

    def kinds(self) -> list[str]:
        """Kinds of the messages that were not handed over yet."""
        return [content["kind"] for content, _ in list(self._out.queue)]

    def waiting(self) -> list[tuple[dict[str, Any], list[str]]]:
        """Messages that were not handed over yet, which the caller then hands over: contents, and buffers as base64."""
        batch = []
        while not self._out.empty():
            content, buffers = self._out.get()
            self.messages.append((content, len(json.dumps(content)) + sum(map(len, buffers))))
            batch.append((content, [base64.b64encode(data).decode() for data in buffers]))
        return batch

    def _deliver(self) -> bool:
        """Hand over what is waiting, all at once; False when nothing is."""
        batch = self.waiting()
        if batch:
            self.page.evaluate("(batch) => batch.forEach(([content, buffers]) => fromKernel(content, buffers))", batch)
        return bool(batch)

    def open(self, tab: str) -> None:
        """Choose a tab and wait until its figures are drawn."""
        self.page.locator(f".dw [role=tab][id$='-{tab}']").click()
        self.pump(f"() => {_drawn(tab)}")
        self.pump(timeout_s=0.4, fails=False)

    def close(self) -> None:
        for feed in self.feeds:
            feed.close()


def _drawn(tab: str) -> str:
    if tab in ("console", "controls"):
        return "true"
    page = f"document.querySelector(\".dw-tabpage[id$='-{tab}-page']\")"
    return f"{page}.querySelector('.dw-figure, .dw-nothing') && !{page}.querySelector('.dw-waiting')"

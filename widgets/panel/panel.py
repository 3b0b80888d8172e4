"""The live panel of a run: the scripts in ``static/`` draw it, a feed sends the data.

The widget stores no data: a page requests all of it, BokehJS included, and receives it in messages, so a saved notebook
stays small. When the run ends, the output of the panel is replaced by a picture of the final state, which code hosts
and reopened notebooks show. In an open page the script shows the live panel in place of the picture.
"""

from __future__ import annotations

import base64
import math
import threading
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anywidget
import traitlets

from widgets.page import bundle
from widgets.page.busy import Busy
from widgets.page.wire import bokeh_version
from widgets.panel.feed import Feed
from workbench.errors import WorkbenchError
from workbench.plots.still.run_picture import PICTURE_WIDTH, picture, stacked
from workbench.telemetry.store import DISPLAY_ROWS, Store

#: length of the part of the picture's base64 text by which the page recognises it
_PART = 96
#: largest number of runs in one panel
MOST_RUNS = 2


class RunLike(Protocol):
    """The interface of a run that the panel needs."""

    path: Path

    @property
    def status(self) -> str:
        """The run's state, as ``Run.status``."""

    def control(self, name: str, value: Any = None) -> Any:
        """Send a command to the run; ``value`` as typed. Raises ``WorkbenchError`` when it cannot be sent."""


class PanelWidget(anywidget.AnyWidget):
    """The browser side: script and style sheet. Its only state is the id by which the script identifies the panel."""

    panel_id = traitlets.Unicode().tag(sync=True)

    _esm = bundle.script()
    _css = bundle.style()


class Panel:
    """The panel of one run or of two runs side by side. A run given by its directory cannot be controlled.

    ``show()`` displays the panel and starts the feeds. ``finish()`` waits until they end. Raises ``RunDirectoryError``
    or ``ConfigError`` for a path that is not a run directory, and ``ValueError`` for more than ``MOST_RUNS`` runs.
    """

    def __init__(self, run: RunLike | str | Path, *others: RunLike | str | Path) -> None:
        given = [run, *others]
        if len(given) > MOST_RUNS:
            raise ValueError(f"a panel shows at most {MOST_RUNS} runs, not {len(given)}: use %dist_compare for more")
        self.runs = [None if isinstance(one, (str, Path)) else one for one in given]
        paths = [Path(one) if isinstance(one, (str, Path)) else Path(one.path) for one in given]
        stores = [Store(path, most=DISPLAY_ROWS) for path in paths]
        for store in stores:
            _ = store.spec  # raises here, and not in the feed, when the spec cannot be read
        self.paths = paths
        self.widget = PanelWidget(panel_id=uuid.uuid4().hex)
        answer_in_the_senders_thread(self.widget.comm)
        self.widget.on_msg(self._on_message)
        self._busy = Busy()
        self._display_id = uuid.uuid4().hex
        self._picture: dict[str, Any] | None = None
        self._ends: dict[int, tuple[bytes, str]] = {}  # number of a run that has ended -> its picture and summary
        self._ending = threading.Lock()
        self._shown = False
        names = [path.name for path in paths]
        self.feeds = [
            Feed(
                store,
                self.widget.send,
                status=None if one is None else partial(getattr, one, "status"),
                can_control=one is not None,
                busy=self._busy,
                on_end=partial(self._on_end, place),
                run=place,
                names=names,
            )
            for place, (one, store) in enumerate(zip(self.runs, stores, strict=True))
        ]

    @property
    def feed(self) -> Feed:
        """The first run's feed."""
        return self.feeds[0]

    def show(self) -> None:
        """Display the panel (once) and start its feeds."""
        if self._shown:
            return
        self._shown = True
        names = " and ".join(path.name for path in self.paths)
        publish_widget(self.widget, f"Live panel of {names}", self._display_id, self.paths)
        when_closed(self.widget, self.close)
        for feed in self.feeds:
            feed.start()

    def finish(self, timeout: float | None = 60.0) -> bool:
        """Wait until the final state is shown. Returns False when a run is still going after ``timeout`` seconds.

        A notebook that is executed without a browser calls this in a cell, so that its output contains the picture.
        """
        return all(feed.ended.wait(timeout) for feed in self.feeds)

    def close(self) -> None:
        """End the feeds and remove the widget from all pages."""
        for feed in self.feeds:
            feed.close()
        self._busy.close()
        self.widget.close()

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict):
            return
        kind, place = content.get("kind"), content.get("run", 0)
        if not isinstance(place, int) or not 0 <= place < len(self.feeds):
            return
        if kind == "hello":
            for feed in self.feeds:
                feed.hello(content.get("have") if feed is self.feed else bokeh_version())
            if self._picture is not None:
                self.widget.send(self._picture)
        elif kind in ("ack", "look"):
            for number, feed in enumerate(self.feeds):
                feed.look(content.get("views") or [], content.get("seq") if number == place else None)
        elif kind == "choose":
            for what in ("rank", "layer", "logged"):
                if what in content:
                    self.feeds[place].choose(what, content[what])
        elif kind == "control":
            self._control(place, str(content.get("name")), content.get("value"))

    def _control(self, place: int, name: str, value: Any) -> None:
        """Send a command to a run, and tell the page at once whether it could be sent."""
        run = self.runs[place]
        error: str | None = None
        try:
            if run is None:
                error = "this panel only reads the run's files: open it with %dist_watch RUN to control the run"
            else:
                run.control(name, value)
        except (
            WorkbenchError,
            ValueError,
            OSError,
        ) as problem:  # a wrong value, a run that has ended, a deleted directory
            error = str(problem)
        self.widget.send({"kind": "answer", "run": place, "name": name, "error": error})
        self.feeds[place].update_soon()

    def _on_end(self, place: int, store: Store, facts: dict[str, Any]) -> None:
        """Replace the output by a picture once all runs have ended.

        The page is told first, so that it keeps the live panel and can show it in place of the picture.
        """
        summary = summarise(facts)
        failure = facts["failure"]
        told = f"{failure['who']}: {failure['error']}\n{failure['traceback']}" if failure else ""
        drawn = picture(store, title=summary)
        with self._ending:
            self._ends[place] = (drawn, "\n\n".join(filter(None, (summary, told))))
            ends = [self._ends[number] for number in sorted(self._ends)]
        if len(ends) < len(self.feeds):
            return
        png = base64.b64encode(stacked([drawn for drawn, _ in ends])).decode()
        at = len(png) // 2
        self._picture = {"kind": "picture", "length": len(png), "at": at, "part": png[at : at + _PART]}
        self.widget.send(self._picture)
        shown = {"image/png": png, "text/plain": "\n\n".join(text for _, text in ends)}
        publish(shown, self._display_id, self.paths, update=True, width=PICTURE_WIDTH)


def publish_widget(
    widget: Any, text: str, display_id: str, runs: Sequence[Path] = (), more: Mapping[str, Any] | None = None
) -> None:
    """Show a widget in the output of the cell. ``more``: MIME type -> data, for viewers without widgets."""
    view = {"version_major": 2, "version_minor": 1, "model_id": widget.model_id}
    forms = {"text/plain": text, "application/vnd.jupyter.widget-view+json": view, **(more or {})}
    publish(forms, display_id, runs, update=False)


def publish(
    data: dict[str, Any], display_id: str, runs: Sequence[Path], *, update: bool, width: int | None = None
) -> None:
    """Publish an output whose metadata names the runs that it shows, so that a report of the notebook finds them."""
    from IPython.display import publish_display_data

    metadata: dict[str, Any] = {"image/png": {"width": width}} if width else {}
    if runs:
        metadata["dist_workbench"] = {"runs": [str(run.absolute()) for run in runs]}
    publish_display_data(data, metadata, transient={"display_id": display_id}, update=update)


def when_closed(widget: Any, then: Any) -> None:
    """Call ``then()`` when the front end closes its side of the widget."""
    if widget.comm is not None and hasattr(widget.comm, "on_close"):
        widget.comm.on_close(lambda _message: then())


def summarise(facts: dict[str, Any]) -> str:
    """Return one line that summarises a run: its state, step, losses and plan."""
    parts = [f"{facts['name']}: {facts['status']} at step {facts['step']} of {facts['steps']}"]
    if facts["loss"] is not None:
        parts.append(f"loss {facts['loss']:.4f}")
    validation = facts["validation"]
    if validation and validation["value"] is not None and math.isfinite(validation["value"]):
        parts.append(f"validation loss {validation['value']:.4f}")
    return f"{', '.join(parts)} ({facts['plan']})"


def answer_in_the_senders_thread(comm: Any) -> None:
    """Handle clicks on the subshell that JupyterLab sends them to, so that buttons work while a cell runs.

    ipykernel 7.4 sends a widget's messages to the shell that used its comm last, which is the main shell and is blocked
    by the cell. The handlers of this project may run in any thread. Earlier versions need no change.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, default: default

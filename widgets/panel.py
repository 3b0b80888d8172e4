"""The live panel of a run: layout lives in ``static/panel.js`` and ``panel.css``, data come from the feed.

The widget holds no data: a page asks for them (BokehJS included) and gets them as messages, so a saved notebook stays
small. When the run ends, the output that showed the panel becomes a picture of the end state, which is what a code host
or a reopened notebook shows; in the page that is open, the script puts the live panel back in the picture's place.
"""

from __future__ import annotations

import base64
import math
import uuid
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import anywidget
import traitlets

from widgets.feed import Feed
from workbench.errors import WorkbenchError
from workbench.plots.picture import SIZE_INCHES, picture
from workbench.telemetry.store import DISPLAY_ROWS, Store

STATIC = Path(__file__).parent / "static"
_PART = 96


class RunLike(Protocol):
    """What the panel asks of a run."""

    path: Path

    @property
    def status(self) -> str:
        """The run's state, as ``Run.status``."""

    def stop(self) -> Any:
        """Ask the run to stop."""


class PanelWidget(anywidget.AnyWidget):
    """The front end's half: script and style; of state only the id that the script knows it by."""

    panel_id = traitlets.Unicode().tag(sync=True)

    _esm = STATIC / "panel.js"
    _css = STATIC / "panel.css"


class Panel:
    """The panel of a run, or of a run directory (then it has no Stop button).

    ``show()`` displays it and starts the feed. ``finish()`` waits for the end of the feed. Raises ``RunDirectoryError``
    or ``ConfigError`` for a path that is no run.
    """

    def __init__(self, run: RunLike | str | Path) -> None:
        self.run = None if isinstance(run, (str, Path)) else run
        path = Path(run) if isinstance(run, (str, Path)) else Path(run.path)
        store = Store(path, most=DISPLAY_ROWS)
        _ = store.spec  # a spec that cannot be read is said here, not in the feed
        self.path = path
        self.widget = PanelWidget(panel_id=uuid.uuid4().hex)
        _answer_in_the_senders_thread(self.widget.comm)
        self.widget.on_msg(self._on_message)
        self._display_id = uuid.uuid4().hex
        self._picture: dict[str, Any] | None = None
        self._shown = False
        self.feed = Feed(
            store,
            self.widget.send,
            status=None if self.run is None else partial(getattr, self.run, "status"),
            can_stop=self.run is not None,
            on_end=self._on_end,
        )

    def show(self) -> None:
        """Display the panel (once) and start its feed."""
        if self._shown:
            return
        self._shown = True
        data = {
            "text/plain": f"Live panel of {self.path.name}",
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 1,
                "model_id": self.widget.model_id,
            },
        }
        self._publish(data, update=False)
        self.feed.start()

    def finish(self, timeout: float | None = 10.0) -> bool:
        """Wait until the end state is shown; False when the run still goes on after ``timeout`` seconds.

        A notebook that is executed without a browser calls this in a cell, so that the picture gets into its output.
        """
        return self.feed.ended.wait(timeout)

    def close(self) -> None:
        """End the feed and take the widget off all pages."""
        self.feed.close()
        self.widget.close()

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind == "hello":
            self.feed.hello(content.get("have"))
            if self._picture is not None:
                self.widget.send(self._picture)
        elif kind == "stop" and self.run is not None:
            self.feed.stop_asked()
            try:
                self.run.stop()
            except WorkbenchError as error:  # it ended while the button was pressed, or its directory is gone
                self.widget.send({"kind": "trouble", "text": str(error)})

    def _on_end(self, store: Store, facts: dict[str, Any]) -> None:
        """The output becomes a picture; the page is told first, to keep the live panel for it."""
        summary = summarise(facts)
        png = base64.b64encode(picture(store, title=summary)).decode()
        at = len(png) // 2
        self._picture = {"kind": "picture", "length": len(png), "at": at, "part": png[at : at + _PART]}
        self.widget.send(self._picture)
        text = "\n\n".join(filter(None, (summary, facts["failure"])))
        self._publish({"image/png": png, "text/plain": text}, update=True, width=int(SIZE_INCHES[0] * 100))

    def _publish(self, data: dict[str, Any], *, update: bool, width: int | None = None) -> None:
        from IPython.display import publish_display_data

        metadata: dict[str, Any] = {"image/png": {"width": width}} if width else {}
        metadata["dist_workbench"] = {"run": str(self.path.absolute())}
        publish_display_data(data, metadata, transient={"display_id": self._display_id}, update=update)


def summarise(facts: dict[str, Any]) -> str:
    """One line for people: what a run came to."""
    parts = [f"{facts['name']}: {facts['status']} at step {facts['step']} of {facts['steps']}"]
    if facts["loss"] is not None:
        parts.append(f"loss {facts['loss']:.4f}")
    validation = facts["validation"]
    if validation and validation["value"] is not None and math.isfinite(validation["value"]):
        parts.append(f"validation loss {validation['value']:.4f}")
    return f"{', '.join(parts)} ({facts['plan']})"


def _answer_in_the_senders_thread(comm: Any) -> None:
    """Let a click be handled on the subshell that JupyterLab sends it to, so that it works while a cell blocks.

    ipykernel 7.4 sends a widget's messages to whichever shell used its comm last: the main one, which is busy with the
    cell. Our handlers may run in any thread. Earlier versions have no such rule, and nothing to change.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, default: default

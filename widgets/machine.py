"""The panel of the machine (``%dist_watch`` without a run): its cores, memory, GPUs and the ranks that are up."""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import socket
import threading
import time
import uuid
from typing import Any

import anywidget
import psutil
import traitlets

from widgets.page import bundle
from widgets.page.busy import Busy
from widgets.page.pace import Pace
from widgets.panel.panel import answer_in_the_senders_thread, publish, publish_widget, when_closed
from workbench.cluster.session import Session
from workbench.core import background
from workbench.plots import theme
from workbench.plots.still.run_picture import bars

#: seconds between two updates
PERIOD_S = 1.0
#: largest number of cores for which the picture has a bar each; with more, one bar shows their mean
MOST_CORES = 16


class MachineWidget(anywidget.AnyWidget):
    """The browser side of the panel."""

    panel_id = traitlets.Unicode().tag(sync=True)

    _esm = bundle.script("machine")
    _css = bundle.style()


class MachinePanel:
    """The panel of the machine: ``show()`` displays it and updates it once a second until ``close()``."""

    def __init__(self) -> None:
        self.widget = MachineWidget(panel_id=uuid.uuid4().hex)
        answer_in_the_senders_thread(self.widget.comm)
        self.widget.on_msg(self._on_message)
        self._pace = Pace()
        self._busy = Busy()
        self._display_id = uuid.uuid4().hex
        self._seen: dict[str, Any] | None = None
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._rounds = background.Rounds(self._tell_failure)
        self._thread = background.thread(self._loop, name="panel-machine", failed=self._tell_failure)

    def show(self) -> None:
        """Display the panel and start its thread."""
        self._seen = look()
        publish_widget(self.widget, f"Live panel of {socket.gethostname()}", self._display_id, more=still(self._seen))
        when_closed(self.widget, self.close)
        self._thread.start()

    def close(self) -> None:
        """End the thread and remove the widget from all pages; its output keeps a picture of the last state."""
        if self._seen is not None and not self._closing.is_set():
            publish(
                {"text/plain": f"Panel of {socket.gethostname()}", **still(self._seen)},
                self._display_id,
                (),
                update=True,
            )
        self._closing.set()
        self._wake.set()
        self._busy.close()
        self.widget.close()

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind in ("hello", "ack", "look"):
            views = content.get("views") or []
            visible = any(view.get("visible") for view in views) if views else True
            self._pace.heard(time.monotonic(), content.get("seq"), visible)
            if kind == "hello":
                self._wake.set()

    def _loop(self) -> None:
        psutil.cpu_percent(percpu=True)  # the first call only starts the measurement
        while not self._closing.is_set():
            clock = time.monotonic()
            busy = self._busy()
            if self._pace.ready(clock) and self._pace.state(clock, busy) != "hidden":
                with self._rounds:
                    self._seen = look()
                    self.widget.send({"kind": "machine", "seq": self._pace.sending(clock), **self._seen})
                    self._pace.spent(time.monotonic() - clock)
            self._wake.wait(max(PERIOD_S, self._pace.period_s(clock, busy)))
            self._wake.clear()

    def _tell_failure(self, error: BaseException) -> None:
        text = f"The state of the machine could not be read ({background.described(error)}); retrying."
        self.widget.send({"kind": "trouble", "text": text})


def still(seen: dict[str, Any]) -> dict[str, str]:
    """Draw the state ``seen`` as a picture, for viewers without widgets: MIME type -> data."""
    memory, cores = seen["memory"], seen["cores"]
    each = [(f"core {number}", busy / 100, f"{busy:.0f} %") for number, busy in enumerate(cores)]
    mean = sum(cores) / max(1, len(cores))
    rows = each if len(each) <= MOST_CORES else [(f"{len(cores)} cores", mean / 100, f"{mean:.0f} % (mean)")]
    rows.append(_memory_row("memory", memory["used"], memory["total"]))
    for number, gpu in enumerate(seen["gpus"]):
        if gpu["busy"] is not None:
            rows.append((f"GPU {number}", gpu["busy"] / 100, f"{gpu['busy']:.0f} %"))
        rows.append(_memory_row(f"GPU {number} memory", gpu["used"], gpu["total"]))
    rows.append(("ranks", math.nan, f"{len(seen['ranks'])} up" if seen["ranks"] else "none up"))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen["time"]))
    return {"image/png": base64.b64encode(bars(f"{seen['host']}, {when}", rows)).decode()}


def _memory_row(name: str, used: float, total: float) -> tuple[str, float, str]:
    return name, used / max(1, total), f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB"


def look() -> dict[str, Any]:
    """Read the state of the machine, as JSON values.

    ``cores``: percent of each; ``load``: averages; ``memory`` and ``swap``: bytes; ``gpus``; ``ranks``; ``warnings``.
    """
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    session = Session.current()
    ranks = [] if session is None else [dataclasses.asdict(status) for status in session.status()]
    return {
        "host": socket.gethostname(),
        "time": time.time(),
        "cores": psutil.cpu_percent(percpu=True),
        "load": list(os.getloadavg()),
        "memory": {"used": memory.total - memory.available, "total": memory.total},
        "swap": {"used": swap.used, "total": swap.total},
        "gpus": gpus(),
        "ranks": ranks,
        "run": None if session is None else session.busy,
        "warnings": [] if session is None else list(session.warnings),
        "theme": {"ranks": theme.RANK_COLOURS},
    }


def gpus() -> list[dict[str, Any]]:
    """Read the state of each GPU from NVML: name, busy (percent), used and total (bytes), temperature (C), power (W).

    The list is empty without NVML or a driver.
    """
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver, or it went away
        return []


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    found: dict[str, Any] = {"name": name if isinstance(name, str) else name.decode(), "used": int(memory.used)}
    found["total"] = int(memory.total)
    for key, ask in (
        ("busy", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        ("temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        ("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
    ):
        try:
            found[key] = ask()
        except nvml.NVMLError:  # not every device supports every query
            found[key] = None
    return found

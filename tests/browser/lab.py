"""JupyterLab in a directory of its own, and a page that drives it: what the browser tests share."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import nbformat

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_S = 300
REPOSITORY = Path(__file__).parents[2]


def find_browser() -> str | None:
    """Path of an installed chromium, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@dataclass
class Lab:
    """A running JupyterLab."""

    root: Path
    url: str
    token: str

    def write_notebook(self, name: str, cells: Sequence[str]) -> Path:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.root / name
        nbformat.write(notebook, path)
        return path

    def end_kernels(self) -> None:
        """End all kernels, so that what a test left running takes nothing from the next."""
        for kernel in self._kernels():
            self._request("DELETE", f"api/kernels/{kernel['id']}")

    def _kernels(self) -> list[dict[str, Any]]:
        """The kernels that run. The server answers with status 500 while it removes one that has ended."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return list(json.loads(self._request("GET", "api/kernels")))
            except HTTPError as error:
                if error.code != HTTPStatus.INTERNAL_SERVER_ERROR or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _request(self, method: str, path: str) -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        with urlopen(Request(self.url + path, method=method, headers=headers), timeout=START_S) as answer:
            return bytes(answer.read())


#: JupyterLab that ends with the test run, also when that is killed
_JUPYTERLAB = """
import sys
from workbench.cluster.base.processes import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from jupyterlab.labapp import main
main()
"""


@contextmanager
def running_lab(directory: Path, *, theme: str = "JupyterLab Light") -> Iterator[Lab]:
    """JupyterLab on a free port of the loopback, with its own settings, ended (with its kernels) at the end."""
    root = directory / "notebooks"
    runtime = directory / "runtime"
    root.mkdir(parents=True)
    _write_settings(directory / "settings", theme)
    token = secrets.token_hex(16)
    environment = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_DIR": str(directory / "config"),
        "JUPYTER_DATA_DIR": str(directory / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(directory / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(directory / "workspaces"),
        "IPYTHONDIR": str(directory / "ipython"),
        "WORKBENCH_HOME": str(directory / "runs"),
        "PYTHONPATH": str(REPOSITORY),
    }
    options = [f"--ServerApp.token={token}", f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1"]
    options += ["--ServerApp.port=0", "--ServerApp.allow_root=True"]
    options += [f"--{name}.expose_app_in_browser=True" for name in ("LabApp", "JupyterNotebookApp")]
    with (directory / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _JUPYTERLAB, str(os.getpid()), "--no-browser", *options],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=root,
        )
    try:
        yield Lab(root, _wait_for_url(process, runtime, directory / "lab.log"), token)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write_settings(directory: Path, theme: str) -> None:
    """No news, no update check: nothing that would leave the machine."""
    for name, values in {
        "notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
        "themes": {"theme": theme},
    }.items():
        path = directory / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


def _wait_for_url(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                return str(json.loads(path.read_text())["url"])
            except (ValueError, KeyError):
                continue  # still being written
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start within {START_S} s:\n{log.read_text(errors='replace')[-3000:]}")


class LabPage:
    """One notebook open in a browser page. Waiting methods raise playwright's TimeoutError."""

    def __init__(self, page: Any, lab: Lab) -> None:
        self.page = page
        self.lab = lab
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        page.on("request", lambda request: self._note_host(request.url))
        page.on("websocket", lambda socket: self._note_host(socket.url))
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)

    def _note_host(self, url: str) -> None:
        """Hosts that the page asks; blob: and data: stay in the page."""
        if (parts := urlsplit(url)).scheme not in ("blob", "data"):
            self.hosts.add(parts.hostname or "")

    def open(self, path: Path) -> None:
        """Open a notebook alone in the page and wait for its kernel."""
        self.page.goto(f"{self.lab.url}doc/tree/{path.relative_to(self.lab.root)}?token={self.lab.token}")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.page.wait_for_function(KERNEL_READY)

    def command(self, name: str) -> None:
        """Execute a command of JupyterLab and not wait for its end."""
        self.page.evaluate(f"() => {{ window.jupyterapp.commands.execute({name!r}); }}")

    def run_all(self) -> None:
        """Run all cells, and wait until the first has begun: it has ``[*]`` or a number in front."""
        self.page.locator(".jp-CodeCell .jp-InputArea-prompt").first.click()
        self.command("notebook:run-all-cells")
        self.page.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"[*\d]")).first.wait_for()

    def text(self) -> str:
        """What the notebook and any dialog show, for a test that failed."""
        return "\n".join(self.page.locator(".jp-Notebook, .jp-Dialog").all_inner_texts())

    def save(self, path: Path, wait_s: float = START_S) -> Any:
        """Save and return the notebook as written."""
        before = path.stat().st_mtime_ns
        self.command("docmanager:save")
        deadline = time.monotonic() + wait_s
        while True:
            if path.stat().st_mtime_ns != before:
                with contextlib.suppress(nbformat.reader.NotJSONError):  # it is being written
                    return nbformat.read(path, as_version=4)
            assert time.monotonic() < deadline, "the notebook was not saved"
            time.sleep(0.1)

    def points(self) -> int:
        """How many points the loss curve in the panel has (0: no curve yet)."""
        return int(self.page.evaluate(POINTS))

    def wait_for_points(self, more_than: int, timeout_s: float = 300) -> int:
        """Wait until the loss curve has more than so many points, and return how many: a curve that is drawn anew has
        none for a moment."""
        enough = f"() => {{ const points = ({POINTS})(); return points > {more_than} && points; }}"
        return int(self.page.wait_for_function(enough, timeout=timeout_s * 1000).json_value())


KERNEL_READY = """() => {
  const session = window.jupyterapp?.shell.currentWidget?.context?.sessionContext;
  return session?.isReady && session.session?.kernel?.connectionStatus === "connected"
    && session.session.kernel.status === "idle";
}"""

#: rows in the source of the first figure, by way of the element that Bokeh keeps its view on
POINTS = """() => {
  const panel = document.querySelector(".dw");
  return panel?.dataset.points ? Number(panel.dataset.points) : 0;
}"""


def press_stop(page: Any, answer: str = "With checkpoint") -> None:
    """Presses the panel's button that ends a run, and answers its question."""
    page.get_by_role("button", name="Stop training").click()
    page.get_by_role("button", name=answer, exact=True).click()

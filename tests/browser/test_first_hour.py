"""A new user's first hour in JupyterLab on two real ranks: every cell says what it did, or what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browser.lab import LabPage

pytestmark = pytest.mark.browser

MODEL = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.randn(64, 1))
criterion = nn.MSELoss()
"""
HOME = "import os, pathlib\nprint([path.name for path in pathlib.Path(os.environ['WORKBENCH_HOME']).glob('*')])"
CLUSTER = """
import ipyparallel
from traitlets.config import Config
light = Config()
light.WorkbenchEngineSetLauncher.preload = "tests.cluster.preloads:light"
ours = {"controller": "workbench", "engines": "workbench"}
own = ipyparallel.Cluster(n=1, controller_args=["--ping=250"], config=light, **ours)
with own as client:
    print("an engine of", client[0].apply_sync(lambda: __import__("os").environ["WORLD_SIZE"]))
"""
#: ranks of a busy machine take longer to come to a breakpoint, to answer a command, and to end after Ctrl-C
PATIENT = """
import workbench.cluster.debugger.dialogue as _dialogue
import workbench.cluster.releases as _releases
_dialogue._ANSWER_S = _dialogue._WAITING_S = _releases.BOUND_S = 300
"""
#: name -> cell, in the order in which they run
CELLS = {
    "load": f"%load_ext workbench\n{PATIENT}",
    "up": "%dist_up -n 2",
    "group": "%%dist\nprint(dist.is_initialized(), rank + 1 <= world_size, device.type)",
    "names": "%%dist\nhidden = 8\nwidth = rank",
    "refused": f"%%dist_train -n 2 --steps 2\n{MODEL.replace('optimizer =', 'optimiser =')}",
    "plugin": f"%%dist_train -n 2 --steps 2 --plugin fsdp\n{MODEL}",
    "whole": f"%%dist_train -n 2 --steps 2.5\n{MODEL}",
    "home": HOME,
    "left": "%%dist\ndist.destroy_process_group()",
    "normed": f"%%dist_train -n 2 --steps 12 --batch-size 8 --name normed --wait\n{MODEL}",
    "run": "_",
    "again": "%%dist\nt = torch.ones(1); dist.all_reduce(t); print(t.item())",
    "pull": "found = %dist_pull -t 0 width\nfound",
    "pulled": "%dist_pull width hidden -t 1 --into w,h\n(w, h, 'width' in globals())",
    "nowhere": "%dist_pull nowhere",
    "break": "%%dist\ndef f():\n    breakpoint()\n    return 7\nf()",
    "raises": "%%dist\ndef g():\n    return 1 / (rank - rank)\ng()",
    "debug": "%debug",
    "sleeps": "%%dist\nimport time\nprint('begun')\ntime.sleep(600)",
    "fewer": "%dist_up -n 1",
    "train": "import sys\n!{sys.executable} -m workbench.cli.main train --recipe stdlib-llama -n 2 --batch-size 3",
    "cluster": CLUSTER,
    "down": "%dist_down",
    "typed": "%dist_train --rec",
}
#: frames of the product and of its libraries, which no traceback of a user shows
OURS = re.compile(r"site-packages|ipyparallel|session\.py|magics/|workbench/")


class Notebook:
    """The cells of a notebook, run one by one."""

    def __init__(self, page: LabPage, cells: dict[str, str]) -> None:
        self.page, self.names = page.page, list(cells)
        page.open(page.lab.write_notebook("first_hour.ipynb", list(cells.values())))

    def begin(self, name: str) -> Any:
        """Run a cell, and return it."""
        self.page.evaluate(
            """(place) => {
              const notebook = window.jupyterapp.shell.currentWidget.content;
              notebook.deselectAll();
              notebook.activeCellIndex = place;
              window.jupyterapp.commands.execute("notebook:run-cell");
            }""",
            self.names.index(name),
        )
        return self.cell(name)

    def cell(self, name: str) -> Any:
        """A cell of the page."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(self.names.index(name))

    def output(self, cell: Any) -> str:
        """What a cell shows once it has run."""
        cell.locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]")).wait_for()
        return "\n".join(text.strip() for text in cell.locator(".jp-OutputArea-output").all_inner_texts())

    def shown(self, name: str) -> str:
        """Run a cell to its end; what it shows."""
        return self.output(self.begin(name))


def test_each_step_of_the_first_hour(page: LabPage) -> None:
    notebook = Notebook(page, CELLS)
    assert notebook.shown("load") == ""
    assert "2 ranks are up" in notebook.shown("up")
    assert "ranks 0-1\nTrue True cpu" in notebook.shown("group"), "as in nbdistributed, without a word of set-up"
    notebook.shown("names")
    wrong_cells(notebook)
    trained(notebook)
    values_of_ranks(notebook)
    errors_of_ranks(notebook)
    interrupted(notebook, page)
    assert "the variables of cells that ran there are lost" in notebook.shown("fewer")
    told = notebook.shown("train")
    assert "spec" not in told and "use 4" in told, told
    assert "an engine of 1" in notebook.shown("cluster")
    assert "rank 0 ended" in notebook.shown("down")
    completed(notebook)


def wrong_cells(notebook: Notebook) -> None:
    assert "does not define optimizer" in notebook.shown("refused")
    assert "--framework torch" in notebook.shown("plugin")
    assert "'2.5' is not a whole number" in notebook.shown("whole")
    assert notebook.shown("home") == "[]", "a refused start leaves no run directory"


def trained(notebook: Notebook) -> None:
    """A cell with batch normalisation and with names of earlier cells, after a group that was left."""
    notebook.shown("left")
    panel = notebook.begin("normed").locator(".dw")
    panel.locator(".dw-pill", has_text="finished").wait_for()
    told = panel.locator(".dw-events").inner_text()
    assert told.count("uses the statistics of each rank's own share of the batch") == 1
    assert notebook.shown("run") == "<Run 'normed' finished at step 12/12: ddp2>"
    assert "ranks 0-1\n2.0" in notebook.shown("again"), "the group is there again"


def values_of_ranks(notebook: Notebook) -> None:
    assert notebook.shown("pull") == "0"
    assert notebook.shown("pulled") == "(1, 8, False)"
    assert "NameError: name 'nowhere' is not defined" in (told := notebook.shown("nowhere"))
    assert "ranks 0-1" in told and not OURS.search(told), told


def errors_of_ranks(notebook: Notebook) -> None:
    stopped = notebook.begin("break")
    answered(stopped, "p rank + 10", "c")
    told = notebook.output(stopped)
    assert "line 2 of the cell" in told and "10" in told and "11" in told and "ranks 0-1\n7" in told, told
    told = notebook.shown("raises")
    assert "ZeroDivisionError" in told and "line 2" in told and not OURS.search(told), told
    debugged = notebook.begin("debug")
    answered(debugged, "q")
    shown = notebook.output(debugged)
    assert "<module>" in shown and not OURS.search(shown), shown


def answered(cell: Any, *lines: str) -> None:
    """Type lines at the prompts of a cell that runs."""
    for line in lines:  # an answered prompt may stay for a while, or not
        asked = cell.locator(".jp-Stdin-input:not([data-answered])").first.element_handle()
        asked.evaluate("(node) => { node.dataset.answered = 'true'; }")
        asked.fill(line)
        asked.press("Enter")


def interrupted(notebook: Notebook, page: LabPage) -> None:
    cell = notebook.begin("sleeps")
    cell.locator(".jp-OutputArea-output", has_text=re.compile(r"ranks 0-1\s+begun")).first.wait_for()
    page.command("notebook:interrupt-kernel")
    told = notebook.output(cell)
    assert "interrupted: ranks 0-1 stopped" in told and "line 3" in told and not OURS.search(told), told


def completed(notebook: Notebook) -> None:
    """Tab after the beginning of a flag."""
    cell = notebook.cell("typed")
    cell.locator(".cm-content").click()
    notebook.page.keyboard.press("End")
    notebook.page.keyboard.press("Tab")
    notebook.page.locator(".jp-CodeCell .cm-content, .jp-Completer", has_text="--recipe").first.wait_for()

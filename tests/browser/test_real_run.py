"""Every control pressed in the panel of a run that trains on two real ranks; its effect is read in the rank logs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from tests.browser.lab import LabPage, press_stop
from tests.browser.test_watch import TAB, open_in_notebook
from workbench.core.records import Command
from workbench.recipes.stdlib_llama import learning_rate_factor
from workbench.run.api import Run

pytestmark = pytest.mark.browser

STEPS = 20_000  # more than are taken here, and few enough that each changes the learning rate visibly
LOAD = "%load_ext workbench"
#: the cell holds the kernel until the run has ended, so every button acts while a cell blocks
TRAIN = (
    "%dist_train --recipe stdlib-llama -n 2 --steps {steps} --batch-size 8 --eval-every 0 --lr 3e-3 --clip 0"
    " --grad-every 0 --name {name} --wait"
)
#: the branch is started by the session behind the panel; its own panel is asked for
WATCH_BRANCH = """
import time
from workbench.run.api import newest_live
from widgets.page.serve import wait_serving_comms
while (twig := newest_live()) is None or twig.name != "twig": time.sleep(0.05)
get_ipython().run_line_magic("dist_watch", "twig")
wait_serving_comms(twig.ended)
"""
DOWN = "%dist_down"
#: a figure of each tab that has any
SEEN = {
    "overview": "loss", "ranks": "utilisation", "gradients": "gradients", "communication": "traffic",
    "timeline": "timeline",
}  # fmt: skip
SMALL = """%%dist_train -n 2 --steps 100000 --batch-size 8 --name {name}
import time
import torch
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(64, 8)
dataset = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
scale = knob("scale", 1.0, low=0, high=10)
def loss_fn(model, batch):
    time.sleep(0.03)
    return scale * torch.nn.functional.mse_loss(model(batch[0]), batch[1])
"""


class Pressed:
    """The panel of a run in a page, and the run's logs as this process reads them."""

    def __init__(self, page: LabPage, run: Run) -> None:
        self.page, self.run = page, run
        self.delays: dict[str, float] = {}

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
        """Wait for something in the logs; its value."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"no {what} in the logs; the panel: {self.page.errors}"
            self.page.page.wait_for_timeout(20)
        return found

    def events(self, kind: str) -> pd.DataFrame:
        """Events of a kind."""
        events = self.run.events()
        return events[events["kind"] == kind]

    def answer(self, name: str, press: Callable[[], None]) -> tuple[int, Any, Any]:
        """Press, and wait for what all ranks logged: the step after which it took effect, the value, the old value."""
        before = {rank: len(self._of(name, rank)) for rank in (0, 1)}
        clicked = time.time()
        press()
        self.until(lambda: all(len(self._of(name, rank)) > before[rank] for rank in (0, 1)), name)
        first, second = (self._of(name, rank).iloc[before[rank]] for rank in (0, 1))
        told = [(row["step"], row["value"], row["old_value"], row["who"]) for row in (first, second)]
        assert told[0] == told[1] and told[0][3], "all ranks apply it at one step, and say who asked"
        self.delays[name] = round(float(first["time"] - clicked), 2)
        step, value, old, _ = told[0]
        return int(step), value, old

    def _of(self, name: str, rank: int) -> pd.DataFrame:
        events = self.events("control")
        return events[(events["name"] == name) & (events["rank"] == rank)]

    def button(self, label: str) -> Callable[[], None]:
        return lambda: self.page.page.locator(".dw").last.get_by_role("button", name=label, exact=True).click()

    def set(self, name: str, value: Any) -> tuple[int, Any, Any]:
        """``answer`` to a value that is typed into the form."""
        return self.answer(name, lambda: self.type(name, value))

    def type(self, name: str, value: Any) -> None:
        """Type a value into the form of the tab Controls and press its button."""
        field = self.page.page.locator(".dw").last.locator(f".dw-control[data-control={name}]")
        box = field.locator("input, select")
        if box.evaluate("(node) => node.tagName") == "SELECT":
            box.select_option(str(value))
        else:
            box.fill(str(value))
        field.get_by_role("button").click()

    def shows(self, name: str, value: str) -> None:
        """Wait until the form shows this value as the one in force."""
        row = self.page.page.locator(".dw").last.locator(f".dw-control[data-control={name}]")
        row.locator(".dw-now", has_text=re.compile(f"^{re.escape(value)}$")).wait_for()

    def column(self, name: str, step: int) -> list[float]:
        """A figure of one step as each rank wrote it, once both have."""
        table = self.run._table("steps")
        return [float(value) for value in table[name][table["step"] == step]]

    def at(self, name: str, step: int) -> list[float]:
        return self.until(lambda: found if len(found := self.column(name, step)) == 2 else None, f"{name} of {step}")


def open_run(page: LabPage, name: str, tab: str = "controls") -> Pressed:
    """Wait for the run that a cell starts, and open a tab of its panel."""
    runs = page.lab.root.parent / "runs"
    page.page.locator(".dw").last.wait_for()
    page.wait_for_points(0)
    (path,) = runs.glob(f"*-{name}")
    pressed = Pressed(page, Run(path))
    page.page.locator(TAB.format(tab)).last.click()
    return pressed


def test_every_control_does_what_it_says_on_real_ranks(page: LabPage) -> None:
    path = page.lab.write_notebook("real.ipynb", [LOAD, TRAIN.format(name="trunk", steps=STEPS), WATCH_BRANCH, DOWN])
    page.open(path)
    page.run_all()
    panel = open_run(page, "trunk")
    held = pause_and_take_steps(panel)
    set_in_the_pause(panel, held)
    set_while_it_trains(panel)
    act(panel)
    look_at_every_tab(panel)
    twig = branch(panel)
    stopped, value, _ = twig.answer("stop", lambda: press_stop(page.page))
    twig.until(lambda: twig.run.status == "stopped", "end of the twig")
    assert value == "checkpoint" and twig.run.checkpoints() == [stopped]
    print("seconds from the click to the effect:", panel.delays | twig.delays)
    asked = [Command.from_line(line) for line in (panel.run.path / "control.jsonl").read_text().splitlines()]
    answers = panel.events("control").query("command > 0 and rank == 1")
    assert answers["command"].tolist() == [command.id for command in asked], "an answer names what it answers"
    assert page.hosts == {"127.0.0.1"}, f"a request left the machine: {page.hosts}"


def pause_and_take_steps(panel: Pressed) -> int:
    held, value, old = panel.answer("pause", panel.button("Pause training"))
    assert (value, old) == ("paused", "running")
    panel.page.page.locator(".dw-pill", has_text="paused").wait_for()
    assert panel.set("step", 3)[:2] == (held, 3)
    panel.until(lambda: len(states_after(panel, held)) == 4, "pause after the steps")  # running, paused: of two ranks
    assert sorted(states_after(panel, held)) == [("paused", held + 3)] * 2 + [("running", held)] * 2
    assert panel.run.last_step == held + 3
    return held + 3


def states_after(panel: Pressed, step: int) -> list[tuple[str, int]]:
    events = panel.events("state")
    events = events[(events["step"] > step) | ((events["step"] == step) & (events["name"] == "running"))]
    return list(zip(events["name"], events["step"], strict=True))


def set_in_the_pause(panel: Pressed, held: int) -> None:
    """Settings that all hold from the next step on; a wrong one is refused where it is typed."""
    run = panel.run
    panel.shows("weight_decay", "0.1")
    panel.shows("grad_layers", "all")
    assert panel.set("lr", "1e-4")[:2] == (held, 1e-4)
    panel.shows("lr", "1e-4")
    assert panel.set("clip", 0.25) == (held, 0.25, 0.0)
    assert panel.set("weight_decay", 0.3)[1] == 0.3
    run.set(weight_decay=0.2)  # another process, as a terminal would
    panel.shows("weight_decay", "0.2")
    assert panel.set("accumulate", 2)[1:] == (2, 1)
    assert panel.set("grad_every", 2)[1:] == (2, 0)
    assert panel.set("grad_layers", "lm_head")[1] == "lm_head"
    asked = (run.path / "control.jsonl").read_text()
    panel.type("accumulate", 3)
    panel.page.page.locator(".dw-answer[data-level=error]", has_text="cannot be split").wait_for()
    assert (run.path / "control.jsonl").read_text() == asked
    assert panel.answer("resume", panel.button("Resume training")) == (held, "running", "paused")
    assert panel.at("lr", held + 1) == [1e-4] * 2 and panel.at("clip", held + 1) == [0.25] * 2
    panel.until(lambda: run.gradients()["step"].max() > held, "gradients")
    gradients = run.gradients()
    assert set(gradients["layer"][gradients["step"] > held]) == {"lm_head"}


def set_while_it_trains(panel: Pressed) -> None:
    run = panel.run
    halved, value, _ = panel.set("lr", "x0.5")
    assert value == 5e-5 and panel.at("lr", halved) == [1e-4] * 2 and panel.at("lr", halved + 1) == [5e-5] * 2
    back, _, old = panel.set("lr", "schedule")
    assert old == 5e-5 and panel.at("lr", back + 1) == pytest.approx([3e-3 * learning_rate_factor(back, STEPS)] * 2)
    rare = panel.set("log_every", 5)[0]
    panel.until(lambda: run.last_step > rare + 10, "steps")
    logged = run.metrics()["step"]
    assert logged[logged > rare].mod(5).eq(0).all()
    panel.set("log_every", 1)
    shown = panel.page.page.locator(".dw").last.locator(".dw-control[data-control=lr] .dw-now")
    before = shown.inner_text()
    panel.until(lambda: shown.inner_text() != before, "schedule in the form")


def act(panel: Pressed) -> None:
    run = panel.run
    evaluated = panel.answer("evaluate", panel.button("Evaluate"))[0]
    assert panel.events("validation").query("name == 'loss'")["step"].tolist() == [evaluated]
    sampled = panel.answer("sample", panel.button("Sample"))[0]
    assert run.samples()[-1][0] == sampled and run.samples()[-1][1]
    assert panel.set("freeze", "embed_tokens")[1] == ["model.embed_tokens"]
    assert panel.set("unfreeze", ".")[1] == []
    saved = panel.answer("checkpoint", panel.button("Write a checkpoint now"))[0]
    assert run.checkpoints() == [saved] and (run.path / "checkpoints" / f"step-{saved:06d}" / "index.json").is_file()
    panel.until(lambda: run.last_step > saved + 3, "steps")
    rolled, value, old = panel.set("rollback", "newest")
    assert (rolled, value) == (saved, saved) and old > saved + 3
    when = panel.events("control").query("name == 'rollback'")["time"].max()
    panel.until(lambda: step_time(run, saved + 1) > when, "steps after the rollback")


def step_time(run: Run, step: int) -> float:
    """When a step was logged, the last time that it was taken; 0 if it was not."""
    metrics = run.metrics()
    return float(metrics["time"][metrics["step"] == step].max()) if (metrics["step"] == step).any() else 0.0


def look_at_every_tab(panel: Pressed) -> None:
    """In JupyterLab, with rows of a real run, while the cell still blocks."""
    page = panel.page.page
    for tab, figure in SEEN.items():
        page.locator(TAB.format(tab)).first.click()
        shown = f"document.querySelector(\".dw-tabpage[id$='-{tab}-page']\")"
        drawn = f"{shown}.querySelector('[data-figure={figure}]')?.dwPlot?.document.get_model_by_name('rows')"
        page.wait_for_function(f"() => {drawn}?.get_length() > 0")
    page.locator(TAB.format("samples")).first.click()
    page.locator(".dw-said", has_text=panel.run.samples()[-1][1].split()[0]).first.wait_for()
    page.locator(TAB.format("console")).first.click()
    page.locator(".dw-console").first.wait_for()
    page.locator(TAB.format("controls")).first.click()
    page.locator(".dw-table td", has_text="Roll back").first.wait_for()


def branch(panel: Pressed) -> Pressed:
    """The run stops with a checkpoint, and another goes on from there."""
    run = panel.run
    parted, value, _ = panel.set("branch", "lr=2e-4 name=twig grad_every=0")
    assert value["lr"] == 2e-4
    panel.until(lambda: run.status == "stopped", "end of the trunk")
    assert run.checkpoints()[-1] == parted
    panel.page.page.locator(".dw").nth(1).wait_for()
    twig = open_run(panel.page, "twig")
    assert twig.at("lr", parted + 1) == pytest.approx([2e-4 * learning_rate_factor(parted, STEPS)] * 2)
    assert twig.run.spec.resume == f"{run.path}@{parted}"
    lineage = panel.page.page.locator(".dw-title .dw-note")
    lineage.nth(0).filter(has_text=f"continues in twig from step {parted}").wait_for()
    lineage.nth(1).filter(has_text=f"continues trunk from step {parted}").wait_for()
    return twig


def test_notebook_7_steers_real_ranks(page: LabPage) -> None:
    """Each control once more; a cell has nothing to evaluate or to sample with, which is answered."""
    cells = [LOAD, SMALL.format(name="seventh"), DOWN]
    open_in_notebook(page, page.lab.write_notebook("real7.ipynb", cells))
    for _ in cells[:2]:
        page.page.keyboard.press("Shift+Enter")
    panel = open_run(page, "seventh")
    held = panel.answer("pause", panel.button("Pause training"))[0]
    panel.shows("scale", "1")  # a knob of the cell, declared after the panel was there
    for name, value, told in (
        ("scale", 2, 2.0), ("lr", "x0.5", 0.05), ("clip", 0.5, 0.5), ("weight_decay", 0.1, 0.1), ("accumulate", 2, 2),
        ("log_every", 1, 1), ("grad_every", 3, 3), ("grad_layers", "0", "0"), ("freeze", "^0", ["0"]),
        ("unfreeze", ".", []),
    ):  # fmt: skip
        assert panel.set(name, value)[:2] == (held, told), name
    saved = panel.answer("checkpoint", panel.button("Write a checkpoint now"))[0]
    panel.button("Evaluate")()
    panel.button("Sample")()
    panel.until(lambda: set(panel.events("refused")["name"]) == {"evaluate", "sample"}, "refusals")
    assert panel.set("step", 2)[:2] == (held, 2)
    panel.until(lambda: panel.run.last_step == held + 2 and panel.run.status == "paused", "pause after the steps")
    assert panel.at("lr", held) == [0.1] * 2 and panel.at("lr", held + 1) == [0.05] * 2
    assert panel.set("rollback", "newest")[:2] == (saved, saved)
    panel.answer("resume", panel.button("Resume training"))
    parted = panel.set("branch", "lr=0.02 name=bough")[0]
    panel.until(lambda: panel.run.status == "stopped", "end of the seventh")
    bough = Pressed(page, panel.until(lambda: find_run(page, "bough"), "branch"))
    assert bough.at("lr", parted + 1) == [0.02] * 2
    page.page.keyboard.press("Shift+Enter")
    print("seconds from the click to the effect:", panel.delays)


def find_run(page: LabPage, name: str) -> Run | None:
    paths = [file.parent for file in (page.lab.root.parent / "runs").glob(f"*-{name}/spec.toml")]
    return Run(paths[0]) if paths else None

"""A control is declared once and implemented once, and everything that shows or asks for it follows from that."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tests.fake_run import make_fake_run
from widgets.page import bundle
from widgets.panel import control_set
from workbench.cli import main as cli
from workbench.core import controls
from workbench.core.config import TrainSpec
from workbench.core.controls import Button, Control
from workbench.core.records import Command
from workbench.engine.agree.control import AgreedControl
from workbench.engine.agree.exchange import Alone
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import Workload
from workbench.engine.loop import acts, settings
from workbench.engine.loop.acts import Boundary, Change
from workbench.engine.loop.settings import Setting, Settings
from workbench.engine.loop.steering import Steering
from workbench.run.api import Run
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store

ROOT = Path(__file__).parents[2]
#: where controls are shown or asked for: nothing there may depend on which control it is
FOLLOWERS = ("widgets/panel/control_set.py", "widgets/panel/panel.py", "widgets/panel/summary.py",
             "workbench/cli/commands/control.py", "magics/control.py",
             "workbench/engine/loop/steering.py")  # fmt: skip
#: names of controls that are also words of something else: of a column, of a figure, of the command line's own act
ALSO_WORDS = {"step", "lr", "sample"}

SHAKE = Control(
    name="shake", kind="int", low=1, default=3, unit="times", help="shake the weights", states=("running",),
    button=Button(text="Shake", title="Shake the weights", place="shake"),
)  # fmt: skip
WARMTH = Control(name="warmth", kind="float", setting=True, low=0, help="how warm it is")


def test_every_control_is_implemented_exactly_once() -> None:
    assert list(acts.ACTS.keys() & settings.SETTINGS.keys()) == []
    assert {control.name for control in controls.acts()} == set(acts.ACTS)
    assert {control.name for control in controls.settings()} == set(settings.SETTINGS)
    implementations = [*acts.ACTS.values(), *settings.SETTINGS.values()]
    assert len({id(one) for one in implementations}) == len(controls.CONTROLS), "two controls do not share one"


@pytest.mark.parametrize("path", FOLLOWERS)
def test_what_shows_or_asks_for_controls_knows_none_by_name(path: str) -> None:
    names = {control.name for control in controls.CONTROLS} - ALSO_WORDS
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    written = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert written & names == set()


def test_the_page_knows_no_control_by_name() -> None:
    script = (bundle.STATIC / "controls.js").read_text(encoding="utf-8")
    assert [one.name for one in controls.CONTROLS if f'"{one.name}"' in script] == []


class Loop:
    """A training loop that no act of this test asks for anything."""


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two more controls, each declared once and implemented once; what they did on the rank."""
    did: list[Any] = []

    def shake(at: Boundary, times: int) -> Change:
        did.append(("shake", at.step, times))
        return Change(times, 0)

    def set_warmth(settings: Settings, value: float) -> None:
        did.append(("warmth", value))

    monkeypatch.setattr(controls, "CONTROLS", (*controls.CONTROLS, SHAKE, WARMTH))
    monkeypatch.setitem(acts.ACTS, "shake", shake)
    monkeypatch.setitem(settings.SETTINGS, "warmth", Setting(lambda _: did[-1][1] if did else 0.5, set_warmth))
    return did


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    path = make_fake_run(tmp_path / "2026-01-01-000000-fake", state="running", steps=4)
    (path / "control.jsonl").touch()
    return Run(path)


def asked(run: Run) -> list[tuple[str, Any]]:
    lines = (run.path / "control.jsonl").read_text().splitlines()
    return [(command.name, command.value) for command in map(Command.from_line, lines)]


def test_a_new_control_is_everywhere(
    declared: list[Any], run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "refuse_if_ended", lambda *_: None)
    assert {SHAKE, WARMTH} <= set(run.controls())
    run.ask("shake", "2")
    run.set(warmth="1.5")

    assert cli.main(["control", str(run.path), "shake", "4"]) == 0
    assert cli.main(["control", str(run.path), "set", "warmth=2"]) == 0
    with pytest.raises(SystemExit):
        cli.main(["control", "--help"])
    told = capsys.readouterr().out
    assert "shake the weights (a whole number of at least 1)" in told and "how warm it is" in told

    import magics

    shell = InteractiveShell(config=Config({"Workbench": {"warm": False}, "HistoryManager": {"enabled": False}}))
    magics.load(shell)
    shell.run_line_magic("dist_shake", f"5 --run {run.path}")
    shell.run_line_magic("dist_set", f"warmth=3 --run {run.path}")
    pairs = [("shake", 2), ("warmth", 1.5), ("shake", 4), ("warmth", 2.0), ("shake", 5), ("warmth", 3.0)]
    assert asked(run) == pairs

    store = Store(run.path)
    store.refresh()
    shown = {control["name"]: control for control in control_set.declared(store)}
    assert shown["shake"]["button"] == {"text": "Shake", "title": "Shake the weights", "place": "shake", "asked": "",
                                        "question": "", "answers": []}  # fmt: skip
    assert (shown["shake"]["widget"], shown["shake"]["states"]) == ("number", ["running"])
    assert shown["warmth"]["setting"] and shown["warmth"]["widget"] == "number"
    assert control_set.current_value_words({"warmth": 2.5})["warmth"] == "2.5"


def test_a_new_control_is_carried_out_on_the_ranks(
    declared: list[Any], tmp_path: Path, steering: Callable[[RankLogWriter], Steering]
) -> None:
    with (tmp_path / "control.jsonl").open("w") as file:
        for name, value in (("shake", None), ("warmth", 4), ("warmth", -1), ("shiver", 1)):
            file.write(Command(time=1.0, name=name, value=value, who="ada", id=7).to_line())
    with RankLogWriter(tmp_path, 0) as log:
        steered = steering(log)
        steered.tell_settings(0)
        assert steered.boundary(3).stop is False
    assert declared == [("shake", 3, 3), ("warmth", 4.0)]
    store = Store(tmp_path)
    store.refresh()
    events = store.table("events")
    rows = list(zip(events["kind"], events["name"], events["value"], events["old_value"], events["who"], strict=True))
    assert rows[1:3] == [("control", "shake", "3", "0", "ada"), ("control", "warmth", "4.0", "3", "ada")]
    assert [row[:2] for row in rows[3:]] == [("refused", "warmth"), ("refused", "shiver")]
    assert '"warmth": 0.5' in rows[0][2], "its value is told when training begins"


@pytest.fixture
def steering(tmp_path: Path) -> Callable[[RankLogWriter], Steering]:
    """Steering of a training on this process alone."""
    (tmp_path / "spec.toml").write_text("[train]\n")
    model = torch.nn.Linear(2, 1)
    workload = Workload(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data=cast(Any, None),
        criterion=torch.nn.MSELoss(),
    )
    strategy = cast(Strategy, SimpleNamespace(layers=lambda: [""]))
    spec = TrainSpec.from_options({"ranks": 1, "batch_size": 2})

    def made(log: RankLogWriter) -> Steering:
        return Steering(
            settings=Settings(spec, workload, strategy, []),
            loop=cast(Any, Loop()),
            control=_Posted(tmp_path),
            log=log,
            enter=lambda phase: None,
        )

    return made


class _Posted(AgreedControl):
    """The control file of a run of one rank, read up to its end."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, Alone())
        self.post()

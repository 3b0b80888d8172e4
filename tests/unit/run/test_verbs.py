"""Verbs of a run: checked where they are typed, one line in the control file, the same in all four ways."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from workbench.cli import main as cli
from workbench.core import controls
from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec
from workbench.core.controls import CONTROLS
from workbench.core.knobs import Knobs
from workbench.core.records import Command
from workbench.errors import ConfigError, RunDirectoryError, RunError
from workbench.run import branching
from workbench.run.api import Run, newest_live
from workbench.rundir import directory as run_directory
from workbench.rundir.commands import CommandReader
from workbench.rundir.log import RankLogWriter

SPEC = TrainSpec(recipe="digits-vit", name="first", plan=ParallelPlan(ranks=2), steps=10, batch_size=8)
#: a value for each control that takes one, as text and as the line then has it
VALUES = {
    "alert": ("high: loss > 10", {"name": "high", "when": "loss > 10", "text": "", "after": 1}),
    "step": ("5", 5),
    "stop": ("checkpoint", "checkpoint"),
    "lr": ("1e-4", 1e-4),
    "clip": ("1.0", 1.0),
    "weight_decay": ("0.1", 0.1),
    "accumulate": ("2", 2),
    "log_every": ("3", 3),
    "grad_every": ("auto", "auto"),
    "grad_layers": ("mlp", "mlp"),
    "watch": ("attention,activations", "activations,attention"),
    "watch_every": ("10", 10),
    "watch_layers": ("mlp", "mlp"),
    "rollback": ("4", 4),
    "freeze": ("layer[.]0", "layer[.]0"),
    "unfreeze": ("layer", "layer"),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    path = run_directory.create(SPEC)
    checkpoint = path / "checkpoints" / "step-000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "index.json").write_text(json.dumps({"format": 1, "saved_at": 1.0}))
    return path


@pytest.fixture
def shell() -> InteractiveShell:
    import magics

    shell = InteractiveShell(config=Config({"Workbench": {"warm": False}, "HistoryManager": {"enabled": False}}))
    magics.load(shell)
    return shell


def lines(path: Path) -> list[tuple[str, Any]]:
    written = [Command.from_line(text) for text in (path / "control.jsonl").read_text().splitlines()]
    assert all(command.who and command.time and command.id for command in written)
    return [(command.name, command.value) for command in written]


def called(run: Run, verb: str, value: Any) -> None:
    """Give a command by its method, whose arguments are the fields of a value that has some."""
    if isinstance(value, dict):
        getattr(run, verb)(**value)
    else:
        getattr(run, verb)(*([] if value is None else [value]))


def test_every_control_has_its_verb_magic_and_word(shell: InteractiveShell) -> None:
    known = shell.magics_manager.magics["line"]
    for control in controls.acts():
        assert callable(getattr(Run, control.name)), control.name
        assert f"dist_{control.name}" in known and known[f"dist_{control.name}"].__doc__
    assert "dist_set" in known and callable(Run.set)
    choices = next(a for a in cli.parser()._subparsers._group_actions[0].choices["control"]._actions if a.dest == "act")
    assert set(choices.choices) == {*(control.name for control in controls.acts()), "set", "show"}


@pytest.mark.parametrize("control", [control for control in CONTROLS if control.name != "branch"], ids=lambda c: c.name)
def test_all_ways_write_the_same_line(control: Any, path: Path, shell: InteractiveShell) -> None:
    text, value = VALUES.get(control.name, ("", None))
    run = Run(path)
    if control.setting:
        run.set(**{control.name: value})
        shell.run_line_magic("dist_set", f"{control.name}={text}")
        words = ["set", f"{control.name}={text}"]
    else:
        called(run, control.name, value)
        shell.run_line_magic(f"dist_{control.name}", f'"{text}"' if " " in text else text)
        words = [control.name, *filter(None, [text])]
    assert cli.main(["control", "first", *words]) == 0
    run.ask(control.name, text or None)
    assert lines(path) == [(control.name, value)] * 4


def test_a_condition_needs_no_quotes(path: Path, shell: InteractiveShell) -> None:
    shell.run_line_magic("dist_alert", "high: loss > -1 and step < 10 --run first")
    assert cli.main(["control", "first", "alert", *["high:", "loss", ">", "-1", "and", "step", "<", "10"]]) == 0
    value = {"name": "high", "when": "loss > -1 and step < 10", "text": "", "after": 1}
    assert lines(path) == [("alert", value)] * 2


def test_a_recipe_logs_nothing_that_a_condition_could_name(path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'loss'"):
        Run(path).alert("high", "los > 1")


def test_several_settings_are_one_write_and_take_effect_together(path: Path, shell: InteractiveShell) -> None:
    shell.run_line_magic("dist_set", "lr=x0.5 clip=1.0 --run first")
    assert lines(path) == [("lr", "x0.5"), ("clip", 1.0)]


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("set", {"lr": -1}, "above 0"),
        ("set", {"lrr": 1}, "did you mean 'lr'"),
        ("set", {"accumulate": 3}, "use 6"),
        ("set", {}, "no setting was given"),
        ("step", {"n": 0}, "at least 1"),
        ("stop", {"after": "lunch"}, "step or checkpoint"),
        ("rollback", {"step": 5}, "there are checkpoints at 4"),
        ("freeze", {"layers": "("}, "not a valid regular expression"),
        ("freeze", {"layers": ""}, "layer names"),
        ("branch", {"lr": -1}, "--lr"),
        ("branch", {"recipe": "x"}, "same model"),
        ("branch", {"nonsense": 1}, "unknown option"),
    ],
)
def test_wrong_values_are_refused_where_they_are_typed(
    path: Path, verb: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        getattr(Run(path), verb)(**arguments)
    assert lines(path) == []


def test_wrong_values_on_the_command_line_and_in_magics(
    path: Path, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["control", "first", "set", "clip=-1"]) == 2 and "at least 0" in capsys.readouterr().err
    assert cli.main(["control", "first", "step", "1", "2"]) == 2
    with pytest.raises(ConfigError, match="'--clip' is not understood: did you mean clip=VALUE"):
        shell.run_line_magic("dist_set", "lr=1 --clip 3")
    for line in ("dist_set clip", "dist_set lr=0", "dist_step none", "dist_rollback 7"):
        name, _, rest = line.partition(" ")
        with pytest.raises(ConfigError):
            shell.run_line_magic(name, rest)
    assert lines(path) == []


@pytest.mark.parametrize("control", [act for act in controls.acts() if not act.starts_run], ids=lambda act: act.name)
def test_a_run_that_has_ended_takes_nothing(control: Any, path: Path) -> None:
    for rank in (0, 1):
        with RankLogWriter(path, rank) as log:
            log.event("state", "failed", {"ename": "E", "evalue": "", "traceback": "", "peer": False})
    _, value = VALUES.get(control.name, ("", None))
    with pytest.raises(RunError, match=rf"has ended \(failed at step 0\), so {control.name} has no effect"):
        called(Run(path), control.name, value)
    with pytest.raises(RunError, match="failed at step 0"):
        Run(path).set(lr=1.0)
    assert lines(path) == [] and newest_live() is None


def test_a_branch_of_a_run_that_has_ended_goes_on_from_its_newest_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (0, 1):
        with RankLogWriter(path, rank) as log:
            log.event("state", "failed", {"ename": "E", "evalue": "", "traceback": "", "peer": False})
    started: list[dict[str, Any]] = []

    def start(options: dict[str, Any]) -> Path:
        started.append(options)
        return path

    monkeypatch.setattr(branching, "_launchers", [start])
    Run(path).branch(lr=1e-4)
    Run(path).control("branch", "lr=1e-3 name=slower")
    assert started == [
        {"name": "first-branch", "lr": 1e-4, "resume": f"{path}@4"},
        {"name": "slower", "lr": 1e-3, "resume": f"{path}@4"},
    ]
    assert lines(path) == [], "its ranks are gone: nobody is asked"


def test_a_run_whose_owner_died_takes_nothing(path: Path) -> None:
    owner = json.loads((path / "owner.json").read_text())
    (path / "owner.json").write_text(json.dumps({**owner, "created": 1.0}))
    with pytest.raises(RunError, match="lost at step 0"):
        Run(path).pause()


def test_without_a_name_it_is_the_newest_run_that_trains(path: Path, shell: InteractiveShell) -> None:
    newer = run_directory.create(SPEC.replace(name="newer"))
    for rank in (0, 1):
        with RankLogWriter(newer, rank) as log:
            log.event("state", "finished")
    shell.run_line_magic("dist_pause", "")
    assert lines(path) == [("pause", None)] and lines(newer) == []


def test_knobs_of_the_training_script(path: Path, shell: InteractiveShell) -> None:
    declared = Knobs().knob("temperature", 1.0, low=0, high=10, unit="K")
    with RankLogWriter(path, 0) as log:
        log.event("control", "declared", {**declared.control.describe(), "value": 1.0})
        log.event("control", "temperature", 2.0, old_value=1.0)
        log.event("control", "lr", 0.5, old_value=1.0)
    run = Run(path)
    assert run.declared() == [declared.control] and run.controls() == [*CONTROLS, declared.control]
    assert run.settings() == {"temperature": 2.0, "lr": 0.5}
    shell.run_line_magic("dist_set", "temperature=3")
    assert lines(path) == [("temperature", 3.0)]
    with pytest.raises(ConfigError, match="from 0 to 10"):
        run.set(temperature=11)


def test_an_unwatched_run_has_no_gradient_interval(path: Path) -> None:
    silent = run_directory.create(TrainSpec(name="silent", monitor=MonitorSpec(level="off")))
    with pytest.raises(ConfigError, match="--monitor off"):
        Run(silent).set(grad_every=5)


def test_the_status_of_a_paused_run(path: Path) -> None:
    for rank in (0, 1):
        with RankLogWriter(path, rank) as log:
            log.event("state", "running")
            log.event("state", "paused", step=3)
    assert Run(path).status == "paused"


def test_settings_name_what_exists() -> None:
    assert {control.name for control in controls.settings()} <= set(VALUES)


def test_a_command_that_does_not_fit_on_the_disk_is_told_and_spoils_no_later_one(path: Path) -> None:
    run = Run(path)
    run.pause()
    size = (path / "control.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(RunDirectoryError, match=r"cannot be written \(No space left.*%dist_down ends them"):
            run.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.set(clip=2.0)
    read = CommandReader(path).read((path / "control.jsonl").stat().st_size)
    assert [getattr(each, "name", "cut off") for each in read] == ["pause", "cut off", "clip"]

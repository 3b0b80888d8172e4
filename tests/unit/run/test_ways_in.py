"""A run is asked for in many ways; the same overrides give the same spec in each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import magics
from workbench import train
from workbench.cli import main as cli
from workbench.core.config import TrainSpec
from workbench.core.flags import FLAGS
from workbench.core.records import Command
from workbench.errors import ConfigError, WorkbenchError
from workbench.run import branching, launch
from workbench.run.api import Run
from workbench.run.resolve import resolve
from workbench.rundir import checkpoints
from workbench.rundir import directory as run_directory
from workbench.rundir.log import RankLogWriter

HYBRID = {"recipe": "stdlib-llama", "ranks": 4, "plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 2}
DDP = {"recipe": "stdlib-llama", "ranks": 4, "plugin": "ddp", "tp": 1, "pp": 1, "micro_batches": 1}
#: the runs that are gone on from: every plugin, with a batch that most plans can cut
BASES = (
    {**HYBRID, "batch_size": 16},
    {**HYBRID, "batch_size": 16, "micro_batches": 4},
    {**HYBRID, "batch_size": 16, "pp": 1, "micro_batches": 1},
    {**DDP, "batch_size": 16},
    {**DDP, "batch_size": 16, "plugin": "zero1", "ranks": 2, "clip": 1.0, "accumulate": 2},
)
CHECKPOINT = 10
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "plugin": st.sampled_from(("ddp", "zero1", "zero2", "hybrid", "hybird")),
        "tp": st.sampled_from((1, 2, 3)),
        "pp": st.sampled_from((1, 2, 4)),
        "micro_batches": st.sampled_from((1, 2, 4)),
        "ranks": st.sampled_from((1, 2, 4)),
        "batch_size": st.sampled_from((16, 32)),
        "steps": st.integers(60, 99),
        "lr": st.sampled_from((1e-4, 0.5)),
        "clip": st.sampled_from((0.0, 2.5)),
        "accumulate": st.sampled_from((1, 2)),
        "shuffle": st.just(True),
        "precision": st.sampled_from(("fp32", "bf16")),
        "budget": st.sampled_from((0.01, 0.25)),
        "grad_every": st.integers(0, 5),
    },
)
#: tables of a spec file
TABLES = {
    "plan": ("ranks", "plugin", "tp", "pp", "micro_batches"),
    "monitor": ("budget", "grad_every"),
}


class Captured(WorkbenchError):
    """The run would be made now."""


@dataclass
class Ways:
    """Asks for runs and keeps what they would be made with; none is made."""

    folder: Path
    shell: InteractiveShell
    spec: TrainSpec | None = None

    def create(self, spec: TrainSpec, cell: str | None = None, **_: object) -> Path:
        """In place of ``rundir.directory.create``."""
        self.spec = spec
        raise Captured("enough")

    def found(self, ask: Any, *arguments: Any, **options: Any) -> Any:
        """The options of the run that ``ask`` leads to, or the flag that is refused."""
        self.spec = None
        try:
            ask(*arguments, **options)
        except Captured:
            assert self.spec is not None
        except ConfigError as error:
            return error.field
        return self._options()

    def _options(self) -> dict[str, Any]:
        assert self.spec is not None, "nothing was asked for"
        return {name: value for name, value in self.spec.options().items() if name not in ("name", "resume")}

    def magic(self, line: str, overrides: dict[str, Any]) -> Any:
        return self.found(self.shell.run_line_magic, "dist_train", f"{line} {' '.join(words_of(overrides))} --quiet")

    def command_line(self, spec: Path, overrides: dict[str, Any], refusal: Any) -> Any:
        """The command line answers with an exit code and a text: ``refusal`` is what it then counts as."""
        self.spec = None
        assert cli.main(["train", str(spec), *words_of(overrides)]) != 0
        return refusal if self.spec is None else self._options()

    def file(self, options: dict[str, Any]) -> Path:
        path = self.folder / "wished.toml"
        path.write_text(tomli_w.dumps(document_of(options)))
        return path


def words_of(overrides: dict[str, Any]) -> list[str]:
    """Wishes as flags."""
    flags = {flag.option: flag for flag in FLAGS}
    words = []
    for name, value in overrides.items():
        words += [flags[name].names[-1], *([] if flags[name].kind is None else [str(value)])]
    return words


def document_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the tables of a spec file."""
    top = {name: value for name, value in options.items() if not any(name in names for names in TABLES.values())}
    tables = {table: {name: options[name] for name in names if name in options} for table, names in TABLES.items()}
    return {**top, **tables}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("ways")
    shell = InteractiveShell(config=Config({"Workbench": {"warm": False}, "HistoryManager": {"enabled": False}}))
    magics.load(shell)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(folder / "runs"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield Ways(folder, shell)


@dataclass
class Base:
    """A run that trains and one that has ended, with the same spec and a checkpoint each."""

    live: Path
    ended: Path


@pytest.fixture(scope="module")
def bases(ways: Ways) -> list[Base]:
    return [Base(live=made(options), ended=made(options, state="finished")) for options in BASES]


def made(options: dict[str, Any], state: str = "") -> Path:
    spec = resolve({"steps": 50, **options}, default_ranks=4).spec
    path = run_directory.create(spec)
    for rank in range(spec.plan.ranks if state else 0):
        with RankLogWriter(path, rank) as log:
            log.event("state", state, step=CHECKPOINT)
    checkpoint = checkpoints.directory(path, CHECKPOINT)
    checkpoint.mkdir(parents=True)
    values = {"clip": spec.clip, "accumulate": spec.accumulate}
    index = {"format": 1, "saved_at": 1.0, "state": {"trainer": {"settings": {"values": values}}}}
    (checkpoint / "index.json").write_text(json.dumps(index))
    return path


@pytest.fixture
def captured(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> Ways:
    monkeypatch.setattr(launch.run_directory, "create", ways.create)
    return ways


@pytest.fixture(scope="module")
def captured_ways(ways: Ways, bases: list[Base]) -> Iterator[Ways]:
    """As ``captured``, for all examples of a property; the runs that are gone on from are made before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.run_directory, "create", ways.create)
        yield ways


@settings(max_examples=15, deadline=None)
@given(overrides=OVERRIDES)
def test_every_way_to_ask_for_a_new_run_gives_the_same_spec(captured_ways: Ways, overrides: dict[str, Any]) -> None:
    ways, model = captured_ways, {"recipe": "stdlib-llama"}
    found = ways.found(train, {**model, **overrides})
    assert ways.magic("", {**model, **overrides}) == found
    file = ways.file({**model, **overrides})
    assert ways.magic(f"--config {file}", {}) == found
    assert ways.found(train, {}, config=file) == found
    assert ways.command_line(file, {}, found) == found
    file = ways.file(model)
    assert ways.magic(f"--config {file}", overrides) == found
    assert ways.command_line(file, overrides, found) == found


@settings(max_examples=15, deadline=None)
@given(which=st.integers(0, len(BASES) - 1), overrides=OVERRIDES)
def test_every_way_to_ask_for_a_changed_run_gives_the_same_spec(
    captured_ways: Ways, bases: list[Base], which: int, overrides: dict[str, Any]
) -> None:
    ways, live, ended = captured_ways, bases[which].live, bases[which].ended
    found = ways.found(train, {**overrides, "resume": str(ended)})
    assert ways.found(train, overrides, config=ended / "spec.toml") == found
    assert ways.command_line(ended / "spec.toml", overrides, found) == found
    assert ways.magic(f"--resume {ended}", overrides) == found
    assert ways.found(Run(ended).branch, **overrides) == found
    as_text = " ".join(f"{name}={value}" for name, value in overrides.items())
    assert ways.found(Run(ended).control, "branch", as_text) == found
    assert ways.found(branch_of_a_live_run, live, as_text) == found


def branch_of_a_live_run(run: Path, changes: str) -> None:
    """What a button does, and what the owner of the ranks does when they have stopped for it."""
    Run(run).control("branch", changes)
    command = Command.from_line((run / "control.jsonl").read_text().splitlines()[-1])
    assert command.name == "branch"
    branching.launch(branching.options_for(run, "base", command.value, CHECKPOINT))


@pytest.mark.parametrize(
    ("base", "overrides", "plan"),
    [
        (HYBRID, {"plugin": "zero1"}, ("zero1", 2, 2, 2)),
        (HYBRID, {"plugin": "ddp"}, ("ddp", 1, 1, 1)),
        (HYBRID, {"plugin": "zero2", "ranks": 2}, ("zero2", 2, 1, 1)),
        (HYBRID, {"plugin": "gemini", "precision": "bf16"}, ("gemini", 1, 1, 1)),
        (HYBRID, {"pp": 1}, ("hybrid", 2, 1, 1)),
        (HYBRID, {"tp": 1, "pp": 4}, ("hybrid", 1, 4, 4)),
        (HYBRID, {"tp": 1}, ("hybrid", 1, 2, 2)),
        ({**HYBRID, "micro_batches": 4}, {"tp": 1, "pp": 4}, ("hybrid", 1, 4, 4)),
        ({**HYBRID, "micro_batches": 4, "batch_size": 16}, {"tp": 1}, ("hybrid", 1, 2, 4)),
        (HYBRID, {"steps": 3}, ("hybrid", 2, 2, 2)),
        (DDP, {"tp": 2}, ("hybrid", 2, 1, 1)),
        (DDP, {"pp": 2}, ("hybrid", 1, 2, 2)),
        (DDP, {"tp": 1}, ("ddp", 1, 1, 1)),
    ],
)
def test_overrides_win_and_what_they_leave_no_room_for_falls_back(
    captured: Ways, base: dict[str, Any], overrides: dict[str, Any], plan: tuple[Any, ...]
) -> None:
    found = captured.found(train, overrides, config=captured.file(base))
    assert (found["plugin"], found["tp"], found["pp"], found["micro_batches"]) == plan


@pytest.mark.parametrize(
    ("base", "overrides", "words"),
    [
        (HYBRID, {"plugin": "ddp", "tp": 2}, "--tp 2 needs --plugin hybrid or zero1 or zero2, not ddp"),
        (DDP, {"plugin": "ddp", "pp": 2}, "--pp 2 needs --plugin hybrid"),
        ({"recipe": "stdlib-llama", "micro_batches": "2"}, {"pp": 2}, "--micro-batches must be a whole number"),
    ],
)
def test_overrides_that_contradict_each_other_are_refused(
    ways: Ways, base: dict[str, Any], overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(overrides, config=ways.file(base), default_ranks=2)


def test_the_cell_beside_a_spec_file_trains_unless_another_model_is_asked_for(tmp_path: Path) -> None:
    cell, spec = "model = optimizer = dataset = criterion = 1\n", tmp_path / "spec.toml"
    spec.write_text("steps = 5\n")
    (tmp_path / "cell.py").write_text(cell)
    assert resolve({}, config=spec, default_ranks=2).cell == cell
    assert resolve({}, config=spec, cell=cell + "x = 1", default_ranks=2).cell == cell + "x = 1"
    asked = resolve({"recipe": "digits-vit"}, config=spec, default_ranks=2)
    assert asked.cell is None and (asked.spec.recipe, asked.spec.steps) == ("digits-vit", 5)


def test_a_recipe_says_that_it_shuffles_and_a_spec_can_say_no() -> None:
    for recipe, sizes in (("stdlib-llama", ("tiny", "small", "1b")), ("digits-vit", ("tiny", "small"))):
        for size in sizes:
            assert resolve({"recipe": recipe, "size": size}, default_ranks=2).spec.shuffle
    assert not resolve({"recipe": "digits-vit", "shuffle": False}, default_ranks=2).spec.shuffle

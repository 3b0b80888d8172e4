"""Which commands of before a restart are carried out again, and at which steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from workbench.core.records import Command
from workbench.rundir.checkpoints import directory, newest_of
from workbench.rundir.commands import since, to_repeat

#: (kind, name, step, id of the command)
EVENTS = [
    ("control", "lr", 2, 1),
    ("control", "pause", 3, 2),
    ("control", "clip", 5, 3),
    ("control", "checkpoint", 5, 4),
    ("control", "freeze", 5, 5),
    ("control", "lr", 8, 6),
    ("checkpoint", "restored", 5, 0),  # undoes what came at step 5 and later
    ("control", "knob_of_the_cell", 7, 7),
    ("control", "checkpoint", 9, 8),
    ("control", "unfreeze", 9, 9),
    ("refused", "clip", 9, 10),
    ("control", "lr", 9, 99),  # of no line that was written
]


def repeated(run: Path) -> list[tuple[int, Command]]:
    names = {number: name for _, name, _, number in EVENTS if 0 < number < 99}
    lines = [Command(time=1.0, name=name, value="x0.5", id=number).to_line() for number, name in names.items()]
    (run / "control.jsonl").write_text("".join(lines))
    kinds, names_, steps, numbers = (np.array(column) for column in zip(*EVENTS, strict=True))
    rows = {"kind": kinds, "name": names_, "step": steps, "command": numbers, "rank": np.zeros(len(EVENTS), int)}
    texts = np.array(["null"] * len(EVENTS))
    return to_repeat(run, {**rows, "time": steps * 1.0, "value": texts, "old_value": texts, "who": texts})


def told(commands: list[tuple[int, Command]]) -> list[tuple[int, str]]:
    return [(step, command.name) for step, command in commands]


def test_what_still_holds_is_repeated_at_its_step(tmp_path: Path) -> None:
    found = repeated(tmp_path)
    assert told(found) == [(2, "lr"), (7, "knob_of_the_cell"), (9, "checkpoint"), (9, "unfreeze")]
    assert told(since(found, 0, asked=False)) == [(2, "lr"), (7, "knob_of_the_cell"), (9, "unfreeze")]
    assert told(since(found, 3, asked=False)) == [(7, "knob_of_the_cell"), (9, "unfreeze")]


def test_a_checkpoint_that_was_asked_for_holds_what_was_set_before_it() -> None:
    found = [(4, Command(time=1.0, name=name)) for name in ("lr", "checkpoint", "clip")]
    assert told(since(found, 4, asked=True)) == [(4, "clip")]
    assert told(since(found, 4, asked=False)) == [(4, "lr"), (4, "clip")]


def test_the_newest_checkpoint_of_a_run_and_of_memory_that_no_rollback_has_undone(tmp_path: Path) -> None:
    places = [tmp_path / "run", tmp_path / "memory"]
    assert newest_of(places) is None
    for place, step, saved_at in ((places[0], 9, 10.0), (places[1], 8, 20.0)):
        path = directory(place, step)
        path.mkdir(parents=True)
        (path / "index.json").write_text(json.dumps({"format": 1, "step": step, "saved_at": saved_at}))
    assert newest_of(places) == directory(places[1], 8)
    assert newest_of(places[:1]) == directory(places[0], 9)
    assert newest_of(places, since=15.0) == directory(places[1], 8)
    assert newest_of(places, since=20.0) is None

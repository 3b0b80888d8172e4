"""The part that a Python process has in a watched command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.cli.commands.watch import name_of
from workbench.engine.observed.watched.roles import is_launcher, role_of

ENVIRONMENT = {"WORKBENCH_WATCH": "/runs/1-mine", "WORKBENCH_WATCH_NAME": "mine", "WORKBENCH_WATCH_PID": "7"}
OF_RANK_1 = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SCRIPT = ("python", "train.py")


@pytest.mark.parametrize(
    ("more", "pid", "command", "expected"),
    [
        ({}, 7, SCRIPT, (True, 0, 1)),
        ({}, 8, SCRIPT, (False, 0, 1)),
        ({}, 7, ("python", "-m", "torch.distributed.run", "train.py"), (False, 0, 1)),
        ({}, 7, ("python", "/bin/torchrun", "train.py"), (False, 0, 1)),
        (OF_RANK_1, 9, SCRIPT, (True, 1, 2)),
        ({**OF_RANK_1, "WORKBENCH_WATCH_RANK": "9"}, 10, SCRIPT, (False, 0, 1)),
        ({**OF_RANK_1, "LOCAL_WORLD_SIZE": "1"}, 9, SCRIPT, (False, 0, 1)),
        ({**OF_RANK_1, "TORCHELASTIC_RESTART_COUNT": "1"}, 9, SCRIPT, (False, 0, 1)),
    ],
)
def test_roles(more: dict[str, str], pid: int, command: tuple[str, ...], expected: Any) -> None:
    role = role_of({**ENVIRONMENT, **more}, pid, command)
    assert role.name == "mine"
    assert (role.place == Path("/runs/1-mine"), role.rank, role.ranks) == expected


def test_a_script_that_is_called_with_the_name_of_a_launcher_is_none() -> None:
    assert not is_launcher(("python", "-u", "train.py", "torchrun"))
    assert not is_launcher(("python", "-m", "mine.train"))


def test_names_of_runs() -> None:
    assert name_of(["torchrun", "--nproc-per-node", "2", "src/train me.py", "--lr", "1"]) == "train-me"
    assert name_of(["/bin/-odd-"]) == "odd"

"""The process group of ``%%dist`` cells: there before a cell, never in the way of a training, there again after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import CELL, train
from tests.waiting import until
from workbench.cluster.session import Session

SUM = "import torch, torch.distributed as dist; t = torch.ones(1) * (rank + 1); dist.all_reduce(t); t.item()"


def results(session: Session, code: str, ranks: list[int] | None = None) -> list[str | None]:
    return [output.result for output in session.execute(code, ranks).raise_on_error().outputs.values()]


def warnings(run: object, name: str) -> list[str]:
    events = run.events()
    return events[(events["kind"] == "warning") & (events["name"] == name)]["value"].tolist()


@pytest.fixture
def own_ranks(shell: InteractiveShell) -> Session:
    """Two ranks on which no cell ran."""
    session = Session.current()
    if session is not None:
        session.end_ranks(range(session.n), "the next test is of new ones")
        until(lambda: len(session.dead) == session.n)
    return Session.up(2)


def test_the_first_cell_finds_a_group_and_names(own_ranks: Session) -> None:
    assert results(own_ranks, "dist.is_initialized(), torch.distributed.get_rank()", [1]) == ["(True, 1)"]
    assert results(own_ranks, SUM) == ["3.0", "3.0"]
    assert results(own_ranks, "rank, world_size, device") == [f"({rank}, 2, device(type='cpu'))" for rank in (0, 1)]


def test_a_training_leaves_it_and_the_next_cell_has_it_again(shell: InteractiveShell, two_ranks: Session) -> None:
    assert results(two_ranks, SUM) == ["3.0", "3.0"]
    run = train(shell, "-n 2 --steps 1 --quiet", CELL).wait(timeout=300)
    assert not warnings(run, "process_group")
    assert results(two_ranks, SUM) == ["3.0", "3.0"]


@pytest.mark.parametrize("ranks", [None, [1]])
def test_a_group_that_a_cell_destroyed_is_there_again_for_the_next_cell(
    ranks: list[int] | None, two_ranks: Session
) -> None:
    assert results(two_ranks, SUM) == ["3.0", "3.0"]
    results(two_ranks, "import torch.distributed as dist; dist.destroy_process_group()", ranks)
    assert results(two_ranks, SUM) == ["3.0", "3.0"]
    own = "dist.init_process_group('gloo')"
    results(two_ranks, f"{own}; own = id(dist.group.WORLD)")
    assert results(two_ranks, "own == id(dist.group.WORLD)") == ["True", "True"], "a group of its own stays"
    results(two_ranks, "dist.destroy_process_group()")
    assert results(two_ranks, SUM) == ["3.0", "3.0"]


@pytest.mark.parametrize(
    ("made", "ranks"),
    [
        ("dist.init_process_group('gloo')", None),
        ("pair = dist.new_group([0, 1])", None),
        ("dist.destroy_process_group()", None),
        ("dist.destroy_process_group()", [1]),
    ],
)
def test_groups_that_cells_made_or_left_do_not_disturb_a_training(
    made: str, ranks: list[int] | None, shell: InteractiveShell, two_ranks: Session
) -> None:
    two_ranks.execute(f"import torch.distributed as dist; {made}", ranks).raise_on_error()
    run = train(shell, "-n 2 --steps 1 --quiet", CELL).wait(timeout=300)
    assert bool(warnings(run, "process_group")) == ("destroy" not in made)
    assert results(two_ranks, SUM) == ["3.0", "3.0"]


def test_a_training_on_fewer_ranks_than_are_up(shell: InteractiveShell, two_ranks: Session) -> None:
    assert results(two_ranks, SUM) == ["3.0", "3.0"]
    cell = f"{CELL}\nassert (rank, world_size, str(device)) == (0, 1, 'cpu')\n"
    assert train(shell, "-n 1 --steps 1 --quiet", cell).wait(timeout=300).status == "finished"
    assert results(two_ranks, SUM) == ["3.0", "3.0"]


def test_a_rank_that_is_busy_keeps_its_cell(own_ranks: Session, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    busy = own_ranks.submit(wait, [1], in_group=False)
    assert results(own_ranks, "import torch.distributed as dist; dist.is_initialized()", [0]) == ["False"]
    gate.touch()
    own_ranks.wait(busy)
    assert results(own_ranks, SUM) == ["3.0", "3.0"]

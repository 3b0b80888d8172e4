"""Faults of ranks that wait in a collective of NCCL: they are released, interrupted or told, and the next cell works.

Each function of ``FAULTS`` takes any session of two ranks; ``tests/training/test_gpu_tests.py`` tries them on gloo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.gpu.conftest import gpu_count
from tests.waiting import until
from workbench.cluster import releases
from workbench.cluster.faults import fault
from workbench.cluster.session import Session
from workbench.errors import CellError, RankDiedError

pytestmark = pytest.mark.gpu
REDUCE = "x = torch.ones(1 << 20, device=device)\ndist.all_reduce(x)\nprint(int(x.sum()) >> 20)"


def next_cell_works(session: Session) -> None:
    """The group of cells is made anew, and its sum is that of two ranks."""
    result = session.execute(REDUCE, timeout=120).raise_on_error()
    assert [result[rank].stdout for rank in range(2)] == ["2\n", "2\n"]


def raises(session: Session) -> None:
    """One rank raises while the other waits for it."""
    with pytest.raises(CellError, match="rank 1: ValueError: planted"):
        session.execute(
            f"kept = rank\nif rank:\n    raise ValueError('planted')\n{REDUCE}", timeout=120
        ).raise_on_error()
    assert session.pull("kept") == {0: 0, 1: 1}
    next_cell_works(session)


def interrupted(session: Session) -> None:
    """One rank waits for another that comes to no collective; both are interrupted, and keep their variables."""
    waits = REDUCE.replace("\n", "\n    ")
    cell = session.submit(f"kept = 7\nif rank == 0:\n    print('there', flush=True)\n    {waits}")
    until(lambda: "there" in cell.outputs[0].stdout and 1 not in cell.running_ranks())
    releases.interrupt(cell, signal=session.interrupt, call=session.call)
    assert cell.wait_until_finished(120) and cell.error(0) is not None
    assert session.pull("kept") == {0: 7, 1: 7}
    next_cell_works(session)


def killed(session: Session) -> None:
    """One rank is killed while the other waits for it; a new one takes its place, and the other keeps its variables."""
    session.execute("kept = 9", timeout=120).raise_on_error()
    cell = session.submit(f"import time\nprint('there', flush=True)\nif rank:\n    time.sleep(600)\n{REDUCE}")
    until(lambda: all("there" in output.stdout for output in cell.outputs.values()))
    fault(session, "kill", [1])
    with pytest.raises(RankDiedError, match="rank 1 ended"):
        session.wait(cell, 120)
    renewed = Session.start(session.placement)  # where native code does not end, that rank is replaced too
    assert renewed is session and not session.dead
    next_cell_works(session)


FAULTS = (raises, interrupted, killed)


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[Session]:
    if gpu_count() < 2:
        pytest.skip("NCCL between ranks needs two GPUs")
    session = Session.up(2)
    yield session
    session.down()


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_in_a_collective_of_nccl(check: Callable[[Session], None], two_gpus: Session) -> None:
    check(two_gpus)

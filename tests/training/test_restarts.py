"""``--max-restarts``: ranks that fail or die are replaced, and the run goes on as if nothing had happened."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import train
from tests.waiting import until
from workbench.cluster.base import private_directory
from workbench.cluster.session import Session
from workbench.errors import RunError
from workbench.events.decode import of_kind
from workbench.run.run import Run

#: order, dropout and weights depend on generators; ``FAULT`` is what the loss does in its seventh call
CELL = """
import os, time, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 32), torch.nn.Linear(32, 1)
    def forward(self, x):
        return self.second(torch.nn.functional.dropout(self.first(x).relu(), 0.3, self.training))
model = Net()
features = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
dataset = torch.utils.data.TensorDataset(features, features.sum(1, keepdim=True))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
calls = []
def loss_fn(model, batch):
    calls.append(1)
    if len(calls) == 7 and os.environ["RANK"] == "1":
        FAULT
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
"""
FLAGS = "-n 2 --steps 12 --batch-size 8 --shuffle --quiet --eval-every 0"
ONCE = "if not os.path.exists({file!r}):\n            open({file!r}, 'w').close()\n            {what}"
KILL = "os.kill(os.getpid(), 9)"
RAISE = "raise ValueError('planted')"


@pytest.fixture(scope="module")
def uninterrupted(shell: InteractiveShell) -> np.ndarray:
    return losses_of(train(shell, FLAGS, CELL.replace("FAULT", "pass")).wait(timeout=300))


def losses_of(run: Run) -> np.ndarray:
    metrics = run.metrics()
    assert metrics["step"].tolist() == list(range(1, 13)), "each step counts once"
    return metrics["loss"].to_numpy()


def once(file: Path, what: str) -> str:
    return CELL.replace("FAULT", ONCE.format(file=str(file), what=what))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for copies in memory, apart from those of other runs on the machine."""
    with tempfile.TemporaryDirectory(dir=private_directory.MEMORY) as path:
        monkeypatch.setattr(private_directory, "MEMORY", Path(path))
        yield Path(path)


@pytest.mark.parametrize(
    ("what", "rank", "more", "begins", "reason"),
    [
        (KILL, 0, "--save-every 3 --keep 1", (3, 6), "killed by signal 9"),
        (RAISE, 1, "--save-every 3", (3, 6), "ValueError: planted"),
        (RAISE, 1, "", (0,), "ValueError: planted"),
        (KILL, 1, "--snapshot-every 2", (4, 6), "killed by signal 9"),
    ],
    ids=["killed", "raised", "without a checkpoint", "from memory"],
)
def test_a_run_goes_on_as_if_nothing_had_happened(
    *,
    what: str,
    rank: int,
    more: str,
    begins: tuple[int, ...],
    reason: str,
    shell: InteractiveShell,
    two_ranks: Session,
    uninterrupted: np.ndarray,
    tmp_path: Path,
    memory: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pid = two_ranks.pids[1 - rank]
    cell = once(tmp_path / "failed", what).replace('"RANK"] == "1"', f'"RANK"] == "{rank}"')
    run = train(shell, f"{FLAGS} {more} --max-restarts 2", cell).wait(timeout=300)
    assert run.status == "finished" and not two_ranks.dead and two_ranks.pids[1 - rank] == pid
    np.testing.assert_array_equal(losses_of(run), uninterrupted)
    events = run.events()
    restored = events[events["name"] == "restored"]["step"].tolist()
    assert restored in [[step] * 2 for step in begins], "from the newest checkpoint that was whole"
    if "snapshot" in more:
        cost = of_kind(run.event_rows(), "checkpoint", "snapshot")
        assert all(each.value["every"] == 2 and each.value["bytes"] > 1000 for each in cost)
        assert run.checkpoints() == [12], "of its end"
    assert not list(memory.iterdir())
    (told,) = events[events["name"] == "restart"]["value"]
    assert (
        told["number"] == 1
        and told["of"] == 2
        and told["reason"].startswith(f"rank {rank}: ")
        and reason in told["reason"]
    )
    assert f"(restart 1 of 2): rank {rank}: {told['reason'][8:]}" in capfd.readouterr().err


def test_a_run_fails_when_it_was_restarted_often_enough(
    shell: InteractiveShell, two_ranks: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(shell, f"{FLAGS} --max-restarts 1", CELL.replace("FAULT", RAISE))
    with pytest.raises(RunError, match="on rank 1: ValueError: planted") as raised:
        run.wait(timeout=300)
    assert "raise ValueError('planted')" in raised.value.traceback
    assert run.status == "failed" and len(run.events().query("name == 'restart'")) == 1
    assert run.last_step == 6 and not two_ranks.dead


def test_who_interrupts_a_run_ends_it(shell: InteractiveShell, two_ranks: Session) -> None:
    run = train(shell, f"{FLAGS} --max-restarts 3", CELL.replace("FAULT", "time.sleep(600)"))
    until(lambda: run.last_step >= 6)
    two_ranks.interrupt()
    with pytest.raises(RunError):
        run.wait(timeout=300)
    assert run.status == "failed" and not len(run.events().query("name == 'restart'"))


def test_what_was_set_by_hand_is_set_again_at_its_step(
    shell: InteractiveShell, two_ranks: Session, tmp_path: Path
) -> None:
    found = []
    for name, what in (("whole", "pass"), ("again", ONCE.format(file=str(tmp_path / "failed"), what=KILL))):
        go = tmp_path / f"go-{name}"
        waits = f"calls.append(1)\n    while len(calls) == 5 and not os.path.exists({str(go)!r}): time.sleep(0.01)"
        cell = CELL.replace("FAULT", what).replace("calls.append(1)", waits)
        run = train(shell, f"{FLAGS} --save-every 3 --max-restarts 1", cell)
        until(lambda run=run: run.last_step >= 4)
        run.set(lr="x0.5", clip=0.5)
        go.touch()
        run.wait(timeout=300)
        rows = run.event_rows()
        assert {event.step for event in of_kind(rows, "control", "lr")} == {6}
        assert len(list(of_kind(rows, "rank", "restart"))) == (name == "again")
        assert run.settings()["lr"] == 0.005 and run.settings()["clip"] == 0.5
        found.append(losses_of(run))
    np.testing.assert_array_equal(*found)

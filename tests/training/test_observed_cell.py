"""A loop in a ``%%dist`` cell, observed: a run like any other, as often as cells observe, and ended by an interrupt."""

from __future__ import annotations

from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.waiting import once
from workbench import Run
from workbench.cluster.session import Session
from workbench.rundir.directory import runs_with_spec

CELL = """
import torch, workbench
from torch.nn.parallel import DistributedDataParallel
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
with workbench.observe(model, optimizer, name={name!r}) as run:
    for step in range({steps}):
        loss = (model(torch.full((2, 4), float(rank + 1))) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        run.step(loss)
losses
"""


def the_run(runs: Path, name: str) -> Run:
    (path,) = runs.glob(f"*-{name}")
    return Run(path)


def test_cells_observe_again_and_again(
    shell: InteractiveShell, two_ranks: Session, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("once", "twice"):
        said = two_ranks.execute(CELL.format(name=name, steps=4)).raise_on_error()
        by_rank = [eval(output.result) for output in said.outputs.values()]
        run = the_run(runs, name)
        assert run.status == "finished" and run.plan.ranks == 2
        assert list(run.metrics()["loss"]) == pytest.approx([sum(pair) / 2 for pair in zip(*by_rank, strict=True)])
        shell.run_line_magic("dist_watch", str(run.path))
    assert "Error" not in capsys.readouterr().out


def test_an_interrupt_ends_the_run_and_the_ranks_observe_again(two_ranks: Session, runs: Path) -> None:
    def steps() -> bool:
        return any(path.name.endswith("-endless") and Run(path).last_step > 1 for path in runs_with_spec())

    waiting = once(steps, two_ranks.interrupt)
    told = two_ranks.execute(CELL.format(name="endless", steps=10**9), timeout=300)
    waiting.join()
    assert {output.error.ename for output in told.outputs.values()} & {"KeyboardInterrupt"}
    run = the_run(runs, "endless")
    assert run.ended() and run.status == "failed"
    two_ranks.execute(CELL.format(name="after", steps=2)).raise_on_error()
    assert the_run(runs, "after").status == "finished"


def test_the_cell_of_the_page(shell: InteractiveShell, two_ranks: Session, runs: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "observe.md").read_text(encoding="utf-8")
    (cell,) = [block.partition("```")[0] for block in page.split("```python\n") if block.startswith("%%dist\n")]
    shell.run_cell(cell).raise_error()
    run = the_run(runs, "mine")
    assert run.status == "finished" and run.plan.ranks == 2 and run.last_step == 100
    assert run.metrics()["loss"].iloc[-1] < run.metrics()["loss"].iloc[0]

"""What ranks run when a fault comes, and when they are there."""

from __future__ import annotations

from pathlib import Path

from tests.training.faults.pairs import IN_CELLS, During, Fault, Pair
from tests.waiting import until
from workbench.core.live.collective_row import read_live
from workbench.run.api import Run
from workbench.rundir import directory as run_directory

#: what rank 1 does, where the fault is in its own code; elsewhere it waits for what comes
_CODE = {
    Fault.EXCEPTION: "raise ValueError('planted')",
    Fault.LOOP: "while True: pass",
    Fault.NATIVE_LOOP: "__import__('collections').deque(__import__('itertools').repeat(0), 0)",
    Fault.MEMORY: "held = [b'x' * (1 << 24) for _ in range(64)]",
}
_TRAINING = """
import os, time, torch
import torch.distributed as dist
rank, calls = int(os.environ["RANK"]), []
def strike():
    if rank == 1:
        open({flag!r}, "w").close()
        {what}
class Own:
    def state_dict(self):
        {in_checkpoint}
        return {{}}
    def load_state_dict(self, state):
        pass
own = Own()
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
features = torch.ones(64, 4)
dataset = torch.utils.data.TensorDataset(features, features.sum(1, keepdim=True))
def loss_fn(model, batch):
    calls.append(1)
    if len(calls) == 3:
        {in_step}
    while {waits}:
        time.sleep(0.02)
    time.sleep(0.02)
    return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
"""


class Scene:
    """What the ranks run. ``directory``: that of their rank server; ``name``: of the run; ``flag``: a file that rank 1
    makes when it is where the fault is to come; ``came``: a file that says that the disk is full, which the run waits
    for before it ends."""

    def __init__(self, pair: Pair, *, directory: Path, flag: Path, name: str) -> None:
        self._pair = pair
        self.directory = directory
        self._flag = flag
        self.came = flag.with_suffix(".came")
        self.name = name

    @property
    def _is_coded(self) -> bool:
        return self._pair.fault in _CODE or self._pair.fault == Fault.MISMATCH

    def magic(self) -> tuple[str, str, str]:
        """The cell that is run: name of its magic, line, body."""
        return ("dist", "", self._cell()) if self._pair.during in IN_CELLS else ("dist_train", *self._training())

    def _cell(self) -> str:
        begin = "import time, torch, torch.distributed as dist\n"
        if self._pair.during == During.IDLE:
            return "1"
        if self._pair.fault == Fault.MISMATCH:
            return f"{begin}open({str(self._flag)!r}, 'w').close()\ndist.all_reduce(torch.ones(3 + rank))"
        what = _CODE.get(self._pair.fault, "time.sleep(600)")
        strike = f"{begin}if rank == 1:\n    open({str(self._flag)!r}, 'w').close()\n    {what}"
        if self._pair.during == During.CELL:
            return strike
        if self._is_coded:  # rank 0 waits for it
            return f"{strike}\ndist.all_reduce(torch.ones(3))"
        sleep = f"if rank == 0:\n    open({str(self._flag)!r}, 'w').close()\n    time.sleep(600)"
        return f"{begin}{sleep}\ndist.all_reduce(torch.ones(3))"  # rank 1 waits for it

    def _training(self) -> tuple[str, str]:
        pair = self._pair
        what = _CODE.get(pair.fault, "time.sleep(1.5)" if pair.fault == Fault.INTERRUPT else "time.sleep(600)")
        mismatch = f"open({str(self._flag)!r}, 'w').close(); dist.all_reduce(torch.ones(3 + rank))"
        in_step = mismatch if pair.fault == Fault.MISMATCH else "strike()"
        saves, fills = pair.during == During.CHECKPOINT, pair.fault == Fault.DISK
        cell = _TRAINING.format(
            flag=str(self._flag),
            what=what,
            in_checkpoint="strike()" if saves and not fills else "pass",
            in_step=in_step if pair.during == During.STEP and self._is_coded else "pass",
            waits=f"len(calls) == 20 and not os.path.exists({str(self.came)!r})" if fills else "False",
        )
        steps = 40 if fills else 100_000
        line = f"-n 2 --framework torch --name {self.name} --steps {steps} --batch-size 8 --eval-every 0 --quiet"
        return f"{line} --monitor off --save-every {2 if saves else 0}", cell

    def run(self) -> Run:
        """The run, once its directory is there."""

        def found() -> list[Path]:
            return [path for path in run_directory.runs_with_spec() if path.name.endswith(f"-{self.name}")]

        return Run(until(found)[0])

    def reach(self) -> None:
        """Waits until the ranks are where the fault is to come."""
        during = self._pair.during
        if during == During.IDLE:
            return
        if during == During.PAUSED:
            run = self.run()
            until(lambda: run.last_step > 1)
            run.pause()
            until(lambda: run.status == "paused")
        elif (during == During.STEP and not self._is_coded) or self._pair.fault == Fault.DISK:
            run = self.run()
            until(lambda: run.last_step > 1)
        else:
            until(self._flag.exists)
            if during == During.COLLECTIVE and self._pair.fault != Fault.MISMATCH:
                until(lambda: self._waits(0 if self._is_coded else 1))

    def _waits(self, rank: int) -> bool:
        live = read_live(self.directory, rank)
        return live is not None and live.waiting

"""What ranks do in the tests of controls: train a small model with the trainer while a script writes commands."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tests.engine import models
from tests.engine.pause_counter import PauseCounter
from workbench.core.config import TrainSpec
from workbench.core.records import Command
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.workload import Evaluation, Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.faults.nonfinite import NonfiniteGuard
from workbench.engine.frameworks.colossal.ranks import joined
from workbench.engine.frameworks.torch_common.exchange import GlooExchange, exchange_of
from workbench.engine.loop.trainer import Trainer
from workbench.engine.state.background_save import BackgroundSave
from workbench.engine.state.checkpoint import Checkpoints
from workbench.engine.state.checkpoint_files import ShardWriter, rank_file
from workbench.engine.watch.host.sampler import Progress
from workbench.rundir import checkpoints
from workbench.rundir.directory import CONTROL_FILE
from workbench.rundir.log import RankLogWriter, rank_directory
from workbench.telemetry.store import Store


class Batches:
    """The batches of ``models.batch``; those of dropout models draw from every generator of the process."""

    def batches(self, dp: int, dp_size: int, start: int = 0):
        number = start
        while True:
            yield models.part(models.batch("plain" if self.kind.startswith("nois") else self.kind, number), dp, dp_size)
            number += 1

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Noise(torch.nn.Module):
    """Random numbers of torch, Python and NumPy in the forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.empty_like(x).uniform_(0.9, 1.1) * random.uniform(0.9, 1.1) * np.random.uniform(0.9, 1.1)


def workload(kind: str, steps: int) -> Workload:
    if kind in ("noise", "noisy"):
        torch.manual_seed(3)
        norm = torch.nn.LayerNorm(32) if kind == "noise" else torch.nn.BatchNorm1d(32)
        network = torch.nn.Sequential(torch.nn.Linear(17, 32), Noise(), norm, torch.nn.Linear(32, 3))
    else:
        network = models.model(kind)
    if kind == "gpt2-drop":
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
    optimizer = models.optimizer(network)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.5 * step / steps)
    return Workload(
        model=network,
        optimizer=optimizer,
        data=Batches(kind),  # type: ignore[arg-type]
        criterion=models.criterion,
        lr_scheduler=scheduler,
        evaluate=lambda strategy: Evaluation(values={"loss": 1.0}, texts=["text"]),
    )


class Script(StepObserver):
    """On rank 0, writes lines when a step begins; they take effect after the next one. Other ranks may be slow.

    ``script``: step -> commands; "paused" -> ``[seconds, command]``, one for each pause, which is written so long after
    its beginning; ``[]``: "resume" is written in each pause until it ends.
    """

    def __init__(self, run: Path, rank: int, script: dict[str, list[Any]], slow_s: float) -> None:
        self.run, self.rank, self.script, self.slow_s = run, rank, script, slow_s
        self._resumes = script.get("paused") == []
        self._goes_on = threading.Event()

    def begins(self, step: int, watch: int) -> None:
        if self.slow_s:
            time.sleep(self.slow_s)
        if self.rank == 0:
            for command in self.script.pop(str(step), []):
                write(self.run, command)

    def phase(self, name: str) -> None:
        if name != "paused":
            self._goes_on.set()
        elif self.rank == 0 and self._resumes:
            self._goes_on = threading.Event()
            threading.Thread(target=self._resume, args=(self._goes_on,), daemon=True).start()
        elif self.rank == 0:
            seconds, command = self.script["paused"].pop(0)
            threading.Timer(seconds, write, (self.run, command)).start()

    def _resume(self, goes_on: threading.Event) -> None:
        while not goes_on.wait(0.05):
            write(self.run, ["resume", None])


def write(run: Path, command: Any) -> None:
    line = command if isinstance(command, str) else None
    if line is None:
        name, value = command
        line = Command(time=time.time(), name=name, value=value, who="test").to_line()
    with (run / CONTROL_FILE).open("a") as file:
        file.write(line)


def train(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str,
    options: dict[str, Any],
    steps: int,
    script: dict[str, list[Any]] | None = None,
    run: str = "run",
    resume: str = "",
    slow: dict[str, float] | None = None,
    collective_timeout_s: float = 60.0,
    full_disk_at: int = 0,
    dies_at_write: int = 0,
    dies_late: bool = False,
    knobs: dict[str, float] | None = None,
    token: str = "",
    one_host: bool = True,
    guarded: bool = False,
) -> dict[str, Any]:
    """This rank's step rows and events, and what it did while it was paused."""
    options = {"eval_every": 0, **options}
    spec = TrainSpec.from_options(
        {"ranks": ranks, "batch_size": models.BATCH, "steps": steps, "final_checkpoint": False, **options}
    )
    path = Path(directory) / run
    path.mkdir(exist_ok=True)
    (path / CONTROL_FILE).touch()
    pauses = PauseCounter()
    with (
        joined_of(spec)(
            rank, ranks, path, seed=7, device_type="cpu", collective_timeout_s=collective_timeout_s, token=token
        ),
        RankLogWriter(path, rank) as log,
    ):
        work = workload(model, steps)
        for name, value in (knobs or {}).items():
            work.knobs.knob(name, value, low=0, high=10)
        strategy = load_strategy(spec)(spec, rank)
        strategy.check(spec, work)
        strategy.prepare(work)
        if model.startswith("nois"):  # data-parallel replicas need not draw the same
            for seed in (torch.manual_seed, random.seed, np.random.seed):
                seed(7 + rank)
        control = AgreedControl(path, exchange_of(rank, ranks), one_host=one_host)
        commands = Script(path, rank, dict(script or {}), (slow or {}).get(str(rank), 0.0))
        try:
            trainer = Trainer(
                spec=spec,
                workload=work,
                strategy=strategy,
                control=control,
                guard=NonfiniteGuard(path, strategy, log, control) if guarded else None,
                log=log,
                progress=Progress(),
                run=path,
                observers=[commands, pauses],
                resume=checkpoints.find(directory / resume.partition("@")[0], checkpoints.split(resume)[1])
                if resume
                else None,
            )
            if full_disk_at:
                _fill_disk(trainer, full_disk_at)
            if dies_at_write and rank == ranks - 1:
                _die_at(dies_at_write, late=dies_late)
            outcome = trainer.run()
        finally:
            commands.phase("over")
            strategy.close()
    return {
        "outcome": outcome,
        "pause": pauses.counts,
        "shared": trainer.control.is_shared,
        **_read(path, rank),
    }


def _read(path: Path, rank: int) -> dict[str, Any]:
    """Rows of steps as they stand in the log, with those that a rollback took back; and events."""
    with pa.ipc.open_stream(rank_directory(path, rank) / "steps.arrow") as reader:
        steps = reader.read_all()
    store = Store(path)
    store.refresh()
    events = store.table("events")
    names = ("step", "loss", "lr", "grad_sq", "clip", "tokens")
    columns = [steps[name].to_pylist() for name in names]
    rows = [[None if math.isnan(value) else value for value in values] for values in zip(*columns, strict=True)]
    own = [i for i in range(len(events["step"])) if events["rank"][i] == rank]
    found = [
        {
            "step": int(events["step"][i]),
            "kind": events["kind"][i],
            "name": events["name"][i],
            "value": json.loads(events["value"][i]),
            "old": json.loads(events["old_value"][i]),
            "who": events["who"][i],
        }
        for i in own
    ]
    return {"rows": rows, "events": found}


def _fill_disk(trainer: Trainer, step: int) -> None:
    """While the checkpoint of that step is written, no file of this process may grow beyond 64 kB: those of its weights
    do, and those of its log do not, which a thread writes meanwhile."""
    saving = trainer._saving
    begin_save = saving.begin_save

    def limited(at: int, *arguments: Any, **options: Any) -> None:
        if at != step:
            begin_save(at, *arguments, **options)
            return
        saving.finish()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
        try:
            begin_save(at, *arguments, **options)
            saving.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    saving.begin_save = limited  # type: ignore[method-assign]


def _die_at(number: int, *, late: bool) -> None:
    """Killed in the middle of the ``number``-th time that files of a checkpoint are flushed. ``late``: when training
    has gone on until it waits for that checkpoint, so that the others learn of it there."""
    sync, finish, calls, asked = checkpoints.sync, Checkpoints.finish, [], threading.Event()

    def deadly(path: Path) -> None:
        calls.append(path)
        if len(calls) == number:
            if late:
                asked.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    def told(saved: Checkpoints, writing: BackgroundSave) -> bool:
        if len(calls) == number:
            asked.set()
        return finish(saved, writing)

    checkpoints.sync, Checkpoints.finish = deadly, told


def frozen(rank: int, ranks: int, directory: Path, **arguments: Any) -> dict[str, Any]:
    """``train``, and how far each tensor of weights and optimizer state moved between the two checkpoints it wrote."""
    found = train(rank, ranks, directory, **arguments)
    from workbench.engine.state.checkpoint_files import ShardReader
    from workbench.engine.state.layout import Place

    first, second = (ShardReader(checkpoints.directory(directory / "run", step)) for step in (3, 4))
    changed = {}
    for name in first.tensors:
        parts = [reader.part(name, Place.whole(reader.tensors[name]["shape"])).float() for reader in (first, second)]
        if parts[0].dim() and not name.startswith("buffers"):
            parameter = name.split("/")[1]
            changed.setdefault(parameter, []).append((parts[0] - parts[1]).abs().max().item())
    return {**found, "changed": {name: values[:2] for name, values in changed.items()}}


def resumed(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    second: dict[str, Any] | None = None,
    options: dict[str, Any],
    **arguments: Any,
) -> dict[str, Any]:
    """A run that writes a checkpoint after step 4, and another that goes on from it, with ``second`` as its plan."""
    script = {"3": [["checkpoint", None]]}
    first = train(rank, ranks, directory, run="first", options=options, script=script, token="1", **arguments)
    changed = second or options
    again = train(rank, ranks, directory, run="again", resume="first@4", options=changed, token="2", **arguments)
    return {"first": first, "again": again}


def contents(rank: int, ranks: int, directory: Path, *, model: str, **arguments: Any) -> dict[str, Any]:
    """What is in the directory of a checkpoint."""
    train(rank, ranks, directory, model=model, **arguments)
    path = checkpoints.find(directory / "run")
    pickled = [
        file.name for file in path.iterdir() if b"\x80\x02" in file.read_bytes()[:2] or b"pickle" in file.read_bytes()
    ]
    return {
        "names": sorted(file.name for file in path.iterdir()),
        "tensors": checkpoints.read_index(path)["tensors"],
        "model": {name: list(parameter.shape) for name, parameter in models.model(model).named_parameters()},
        "pickles": pickled,
    }


def killed_writer(rank: int, ranks: int, directory: Path, **arguments: Any) -> dict[str, Any]:
    """The last rank is killed, as ``arguments`` say: what the others then find."""
    try:
        train(rank, ranks, directory, **arguments)
        failed = False
    except RuntimeError:
        failed = True
    run = directory / "run"
    steps = checkpoints.steps(run)
    for step in steps:
        checkpoints.verify(checkpoints.directory(run, step))
    left = [path.name for path in (run / "checkpoints").iterdir() if path.suffix == ".tmp"]
    return {"failed": failed, "steps": steps, "left": left, "verified": steps}


def damaged(rank: int, ranks: int, directory: Path, **arguments: Any) -> dict[str, Any]:
    """``train`` with a byte of a file changed as soon as the checkpoint is there."""
    publish = checkpoints.publish

    def spoilt(path: Path) -> None:
        publish(path)
        file = path / "rank-00000.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    checkpoints.publish = spoilt
    try:
        return train(rank, ranks, directory, **arguments)
    finally:
        checkpoints.publish = publish


def written_late(rank: int, ranks: int, directory: Path, *, until: int, **arguments: Any) -> dict[str, Any]:
    """``train`` on a disk that writes nothing of a checkpoint before step ``until`` was taken, and the checksums of the
    tensors of the first checkpoint. Where training waited for the disk, the disk would wait for ever."""
    write, take_step, taken = ShardWriter.write, Trainer.take_step, threading.Event()

    def late(writer: ShardWriter, state: dict[str, Any]) -> None:
        if not taken.wait(300.0):
            raise TimeoutError(f"step {until} was not taken while the checkpoint was written")
        write(writer, state)

    def counted(trainer: Trainer, step: int) -> None:
        take_step(trainer, step)
        if step >= until:
            taken.set()

    ShardWriter.write, Trainer.take_step = late, counted  # type: ignore[method-assign]
    try:
        found = train(rank, ranks, directory, **arguments)
    finally:
        ShardWriter.write, Trainer.take_step = write, take_step  # type: ignore[method-assign]
    run = directory / "run"
    first = checkpoints.directory(run, checkpoints.steps(run)[0])
    return {
        **found,
        "steps": checkpoints.steps(run),
        "tensors": checkpoints.digest(first / rank_file(rank, "safetensors")),
    }


def kept(rank: int, ranks: int, directory: Path, **arguments: Any) -> dict[str, Any]:
    """Which checkpoints are there in the end."""
    train(rank, ranks, directory, **arguments)
    return {"steps": checkpoints.steps(directory / "run")}


def ride(rank: int, ranks: int, directory: Path, *, rounds: int) -> dict[str, Any]:
    """Agree in so many rounds as ranks of several hosts do, a sum in every second one: what was heard, the sums, and
    how often the ranks met."""
    (directory / CONTROL_FILE).touch()
    met, heard, sums = [], [], []
    with joined(rank, ranks, directory, device_type="cpu"):
        control = AgreedControl(directory, exchange_of(rank, ranks), one_host=False)
        original = GlooExchange.summed
        GlooExchange.summed = lambda exchange, *values: met.append(1) or original(exchange, *values)
        for number in range(rounds):
            control.post(2**40 + number if rank == 0 else 7)
            if number % 2:
                sums.append(control.summed(0.1 * rank, math.nan if number == 5 and rank == 1 else 1e300 * rank))
            control.take()
            heard.append(control.rider)
        GlooExchange.summed = original
    return {"heard": heard, "sums": sums, "met": len(met)}

"""Each fault while ranks do each thing: the prompt comes back, what is promised holds, the next training works, and
nothing is left. ``python -m tests.training.faults.page`` writes the page ``docs/faults.md`` from these tests.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell

import workbench
from tests.cluster.conftest import descendants, still_there
from tests.training.faults.machine import SmallDisk, limited_memory
from tests.training.faults.pairs import ENDS_ALL, IN_CELLS, PAIRS, During, Fault, Pair, needed_presses
from tests.training.faults.scene import Scene
from tests.waiting import WAIT_S, until
from workbench.cluster.faults import fault as bring_about
from workbench.cluster.session import Session
from workbench.diagnosis.causes import Cause
from workbench.run import job
from workbench.run.run import Run

HERE = [pair for pair in PAIRS if pair.fault != Fault.KERNEL]
PRESSED = (Fault.INTERRUPT, Fault.STOP, Fault.LOOP, Fault.NATIVE_LOOP)
KERNELS = [pair for pair in PAIRS if pair.fault == Fault.KERNEL]


def named(pairs: list[Pair]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pair", pairs, ids=[pair.name for pair in pairs])


@pytest.fixture
def ranks(shell: InteractiveShell) -> Session:
    """Two ranks that are whole and idle."""
    session = Session.current()
    if session is not None and session.is_busy():  # the last test failed
        session.down()
    return Session.up(2, framework="torch")


@pytest.fixture(autouse=True, scope="module")
def ranks_of_another_framework_follow() -> Iterator[None]:
    yield
    session = Session.current()
    if session is not None:
        session.down()


class Person:
    """Who brings the fault about in a thread, and presses Ctrl-C, while the notebook is blocked."""

    def __init__(self, work: Callable[[], None], blocked: Session) -> None:
        self.outcome: Future[None] = Future()
        self._work = work
        self._session = blocked
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._session.down()  # the notebook waits no longer
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(None)


def inject(pair: Pair, session: Session, scene: Scene, disk: SmallDisk | None) -> None:
    """Brings about what is not in the code of rank 1."""
    match pair.fault:
        case Fault.INTERRUPT if pair.during == During.IDLE:
            session.interrupt()
        case Fault.KILL | Fault.STOP:
            bring_about(session, "kill" if pair.fault == Fault.KILL else "stop", [1])
        case Fault.NAN:
            bring_about(session, "nan", [0])
        case Fault.DISK:
            assert disk is not None
            disk.fill(list(session.pids.values()))
            scene.came.touch()
        case Fault.CONTROLLER:
            forked_from = {psutil.Process(pid).ppid() for pid in session.pids.values()}
            children = psutil.Process(session.server_pid).children()
            next(each for each in children if each.pid not in forked_from).kill()
        case Fault.SERVER:
            os.kill(session.server_pid, signal.SIGKILL)
    if pair.fault in ENDS_ALL:  # a busy machine takes time to end processes, in which a cell may run
        until(lambda: len(session.dead) == session.n)
    if pair.during == During.PAUSED and pair.fault in (Fault.STOP, Fault.NAN):
        scene.run().resume()
    if pair.fault == Fault.STOP and pair.during == During.PAUSED:
        until(lambda: "stalled" in set(scene.run().events()["name"]))
        bring_about(session, "continue", [1])
        until(lambda: "moving" in set(scene.run().events()["name"]))
    if pair.fault == Fault.NAN:
        until(lambda: "nonfinite" in set(scene.run().events()["kind"]))


def interrupt(pair: Pair, session: Session, scene: Scene, heard: Callable[[], str]) -> None:
    """Presses Ctrl-C as often as it takes; again when the notebook says so, and rank 0 has answered."""
    for number in range(pair.presses):
        if number:
            until(lambda: "press again" in heard())
            if pair.during in IN_CELLS:
                until(lambda: session.status()[0].state == "idle" or session.status()[1].state == "idle")
            else:
                until((scene.run().path / "control.jsonl").exists)  # it was asked to stop
        os.kill(os.getpid(), signal.SIGINT)


@named(HERE)
def test_a_fault(
    *,
    pair: Pair,
    shell: InteractiveShell,
    ranks: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
    pytestconfig: pytest.Config,
) -> None:
    number = PAIRS.index(pair)
    if pytestconfig.getoption("--as-shipped"):
        pair = replace(pair, presses=needed_presses(pair))
    elif pair.presses and pair.lost:  # it will have to be killed: need not be waited for
        monkeypatch.setattr(job, "GRACE_S", 1.0)
        monkeypatch.setattr(job, "INTERRUPTED_S", 1.0)
        monkeypatch.setattr(job, "FAILING_S", WAIT_S)  # but for the peer that writes how it failed
    else:  # nobody has to be killed, however long a busy machine takes
        monkeypatch.setattr(job, "GRACE_S", WAIT_S)
    ranks.execute("kept = 7").raise_on_error()
    pids, processes = ranks.pids, descendants(ranks.server_pid)
    scene = Scene(pair, directory=ranks.directory, flag=tmp_path / "reached", name=f"fault-{number}")
    disk = SmallDisk(tmp_path / "disk") if pair.fault == Fault.DISK else None
    times: list[float] = []
    printed: list[str] = []

    def heard() -> str:
        printed.append("".join(capsys.readouterr()))
        return "".join(printed)

    def act() -> None:
        scene.reach()
        if pair.during == During.CELL and pair.fault in PRESSED:
            until(lambda: ranks.status()[0].state == "idle")  # rank 0 has nothing to do
        times.append(time.monotonic())
        inject(pair, ranks, scene, disk)
        if pair.fault == Fault.STOP and pair.during == During.PAUSED:
            scene.run().stop()
        interrupt(pair, ranks, scene, heard)

    with ExitStack() as undo:
        if disk is not None:
            undo.callback(disk.remove)
            monkeypatch.setenv("WORKBENCH_HOME", str(disk.place))
        if pair.fault == Fault.MEMORY and not undo.enter_context(limited_memory(pids[1])):
            pair = replace(pair, told="rank 1: MemoryError", lost=())
        late = threading.Timer(WAIT_S, ranks.down)  # what does not come back is ended, and found wrong below
        late.start()
        undo.callback(late.cancel)
        told, run = play(pair, shell, act, scene, ranks)
        times.append(time.monotonic())
        assert (run.status if run is not None else "") == pair.status
    assert not ranks.is_down, "the prompt came back by itself"
    assert (re.search(pair.told, told, re.DOTALL) is not None) if pair.told else told == "", told
    if pair.fault == Fault.MEMORY and pair.lost:  # the reason is told afterwards too
        found = workbench.why(run)
        assert (found.cause, found.missing) == (Cause.DEAD_PEER, (1,)) and "out of memory" in found.sentence
    next_training(pair, shell, ranks, pids)
    if pair.fault in ENDS_ALL:
        assert not still_there(processes)
    record_property("seconds", times[1] - times[0])


def play(
    pair: Pair, shell: InteractiveShell, act: Callable[[], None], scene: Scene, session: Session
) -> tuple[str, Run | None]:
    """Runs what the pair is about, and returns what came back: the error in words, and the run."""
    magic, line, body = scene.magic()
    if pair.during == During.IDLE:
        act()
        error = shell.run_cell(f"%%dist\n{body}").error_in_exec
        if pair.fault == Fault.STOP:
            bring_about(session, "continue", [1])
        return told_by(error), None
    person = Person(act, session)
    line = line if pair.during in IN_CELLS else f"{line} --wait"
    error = shell.run_cell(f"%%{magic} {line}\n{body}").error_in_exec
    person.outcome.result(WAIT_S)
    return told_by(error), scene.run() if pair.during not in IN_CELLS else None


def told_by(error: BaseException | None) -> str:
    return "" if error is None else f"Ctrl-C: {error}" if isinstance(error, KeyboardInterrupt) else str(error)


def next_training(pair: Pair, shell: InteractiveShell, session: Session, pids: dict[int, int]) -> None:
    """The next training works, at once, on the ranks that were kept."""
    until(lambda: not session.is_busy() or session.dead)
    line = "-n 2 --framework torch --steps 2 --batch-size 8 --eval-every 0 --monitor off --quiet"
    assert shell.run_cell_magic("dist_train", line, NEXT).wait(WAIT_S).status == "finished"
    now = Session.current()
    assert now is not None and {rank for rank in pids if now.pids[rank] != pids[rank]} == set(pair.lost)
    kept = {rank: output.result for rank, output in now.execute("'kept' in dir()").outputs.items()}
    assert kept == {rank: str(rank not in pair.lost) for rank in pids}


NEXT = """
import torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
dataset = torch.utils.data.TensorDataset(torch.ones(16, 4), torch.ones(16, 1))
criterion = torch.nn.MSELoss()
"""


@named(KERNELS)
def test_a_kernel_is_killed(
    pair: Pair, shell: InteractiveShell, runs: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with tempfile.TemporaryDirectory(prefix="wb-") as temporary:
        place = Path(temporary)
        scene = Scene(pair, directory=place, flag=tmp_path / "reached", name=f"fault-{PAIRS.index(pair)}")
        words = [sys.executable, "-m", "tests.training.faults.kernel", *scene.magic()]
        with (tmp_path / "said").open("w+") as said:
            environment = {**os.environ, "TMPDIR": temporary}
            kernel = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
            try:
                until(lambda: list(place.glob("workbench-*/rank-00001.row")))
                (scene.directory,) = place.glob("workbench-*")
                if pair.during == During.IDLE:
                    until(lambda: "idle" in (tmp_path / "said").read_text())
                scene.reach()
                processes = descendants(kernel.pid)
                assert len(processes) >= 5, "rank server, controller, warm process, two ranks"
            finally:
                began = time.monotonic()
                kernel.kill()
                kernel.wait()
        assert not still_there(processes)
        record_property("seconds", time.monotonic() - began)
        assert not list(place.glob("workbench-*")), "the private directory of its rank server is gone too"
    if pair.status:
        assert scene.run().status == pair.status


def test_the_page_has_a_row_for_each_pair() -> None:
    text = (Path(__file__).parents[3] / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]
    presses = [str(needed_presses(pair) or "") for pair in PAIRS]
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        (str(pair.fault), str(pair.during), pressed, pair.promise) for pair, pressed in zip(PAIRS, presses, strict=True)
    ]

"""No thread ends unheard: what goes wrong in one is told where the user looks, and what waits for it fails."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.imports import called_names, parsed
from tests.waiting import WAIT_S
from workbench.cluster import client
from workbench.cluster.base import protocol as p
from workbench.core import background
from workbench.core.background import Rounds, described, thread, timer
from workbench.core.live import rank_row
from workbench.errors import ClusterError
from workbench.run import branching, peer_watch
from workbench.run import job as run_job
from workbench.run.peer_watch import PeerWatch
from workbench.terminal import follow

ROOT = Path(__file__).parents[2]


def test_every_thread_is_made_here() -> None:
    files = [file for room in ("workbench", "widgets", "magics") for file in (ROOT / room).rglob("*.py")]
    made = {"Thread", "Timer"}
    own = {str(file.relative_to(ROOT)) for file in files if not made.isdisjoint(called_names(parsed(file)))}
    assert own == {"workbench/core/background.py"}


def fails(*_: Any, **__: Any) -> Any:
    raise ValueError("nobody thought of this")


def test_what_leaves_a_thread_or_a_timer_is_given_on() -> None:
    seen: list[BaseException] = []
    for made in (thread(fails, name="x", failed=seen.append), timer(0.0, fails, failed=seen.append)):
        assert made.daemon
        made.start()
        made.join(WAIT_S)
    assert [described(error) for error in seen] == ["ValueError: nobody thought of this"] * 2
    assert "in fails" in background.traceback_of(seen[0]) and described(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_rounds_go_on_and_tell_once() -> None:
    told: list[str] = []
    rounds = Rounds(lambda error: told.append(str(error)))
    for text in ("a", "a", "b", "", "b"):
        with rounds:
            if text:
                raise ValueError(text)
        assert rounds.failing is bool(text)
    assert told == ["a", "b", "b"]
    with pytest.raises(KeyboardInterrupt), rounds:
        raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------ the server's client


class Process:
    """A server's process that ends when it is told to."""

    pid = 1

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def wait(self, timeout: float | None = None) -> int:
        return -9 if self.killed else 0


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[client.RankServer, socket.socket, Process]]:
    """A client whose server is this test: the socket's other end, and a process that is none."""
    ours, theirs = socket.socketpair()
    process = Process()
    monkeypatch.setattr(client.RankServer, "_start", lambda self, lock: (process, theirs))
    server = client.RankServer()
    yield server, ours, process
    ours.close()
    server._reader.join(WAIT_S)


def test_an_answer_that_cannot_be_read_fails_what_waits(
    served: tuple[client.RankServer, socket.socket, Process], capfd: pytest.CaptureFixture[str]
) -> None:
    server, ours, process = served
    ends: list[str] = []
    server.on_end(ends.append)
    waiting = server.signal([0], 2)
    ours.sendall(b"no message of ours\n")
    with pytest.raises(ClusterError, match="its messages could not be read"):
        waiting.result(WAIT_S)
    server._reader.join(WAIT_S)
    assert process.killed and not server.alive and len(ends) == 1
    assert "warning: the rank server was ended because its messages could not be read" in capfd.readouterr().err


def test_a_listener_that_fails_stops_neither_the_others_nor_the_reader(
    served: tuple[client.RankServer, socket.socket, Process], capfd: pytest.CaptureFixture[str]
) -> None:
    server, ours, _ = served
    heard: list[Any] = []
    server.on_event(fails)
    server.on_event(heard.append)
    server.on_end(fails)
    server.on_end(heard.append)
    waiting: Future[None] = server.signal([0], 2)
    ours.sendall(p.encode(p.ControllerReady(pid=7)) + p.encode(p.Reply(id=1)))
    assert waiting.result(WAIT_S) is None
    ours.shutdown(socket.SHUT_RDWR)
    server._reader.join(WAIT_S)
    assert heard == [p.ControllerReady(pid=7), server._end_reason]
    assert (
        capfd.readouterr().err.count("a callback for events of the rank server failed (ValueError: nobody thought") == 2
    )


# ----------------------------------------------------------------------------------------------------- the peer watch


class Ranks:
    """A run of two ranks of which rank 1 failed, in a session that answers as ``answers`` say, one after another."""

    def __init__(self, answers: list[Exception | None], path: Path) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.released: list[list[int]] = []
        self.ends: list[Any] = []
        self.path, self.directory, self.name = path, path, "fake"
        self.ranks = (0, 1)
        self.outputs = {1: SimpleNamespace(result=None)}
        self.is_deleted = False
        self.run = self
        self.over = threading.Event()
        self.interrupted: Callable[[], object] = lambda: None
        self.began = time.monotonic()

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    def release(self, submission: Any, failed: dict[int, str]) -> None:
        self.released.append(list(failed))
        raise TimeoutError

    def interrupt(self, ranks: Any) -> None:
        self._answer("interrupt")
        self.interrupted()

    def end_ranks(self, ranks: Any, why: str) -> None:
        self._answer("kill")
        self.over.set()

    def stalled(self, diagnosis: Any) -> None: ...

    def moving(self, after_s: float) -> None: ...

    def ranks_ended(self, ranks: Any, why: str) -> None:
        self.ends.append(list(ranks))

    def add_done_callback(self, callback: Any) -> None:
        self.done = callback

    def dead_ranks(self) -> dict[int, str]:
        return {1: "died"}

    def finished_ranks(self) -> list[int]:
        return []

    def running_ranks(self) -> list[int]:
        return [0, 1]

    def failed_ranks(self) -> set[int]:
        return set()


def test_a_server_that_answers_late_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer_watch, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(run_job, "GRACE_S", 0.0)
    monkeypatch.setattr(run_job, "INTERRUPTED_S", WAIT_S)
    late: list[Exception | None] = [
        TimeoutError(),
        TimeoutError(),
        None,
        OSError("no descriptors"),
        ClusterError("busy"),
    ]
    ranks = Ranks(late, tmp_path)
    ranks.interrupted = lambda: monkeypatch.setattr(run_job, "INTERRUPTED_S", 0.0)
    PeerWatch(cast(Any, ranks), cast(Any, ranks), cast(Any, ranks))
    assert ranks.over.wait(WAIT_S)
    assert ranks.asked == ["interrupt"] * 3 + ["kill"] * 3 and ranks.ends == [[0, 1]], "the log says so once"
    assert ranks.released and all(failed == [1] for failed in ranks.released), "a release that fails delays no end"
    said = capfd.readouterr().err
    assert said.count("were not released") == 1 and said.count("could not be watched or ended; retrying") == 3
    assert all(text in said for text in ("(TimeoutError)", "(OSError: no descriptors)", "(ClusterError: busy)"))


@pytest.mark.parametrize("phase", [rank_row.FAILING, rank_row.IDLE])
def test_a_rank_that_leaves_its_training_by_itself_is_not_ended(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle again, its reply is still on the way."""
    monkeypatch.setattr(peer_watch, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(run_job, "GRACE_S", 0.0)
    monkeypatch.setattr(run_job, "INTERRUPTED_S", 0.0)
    ranks = Ranks([], tmp_path)
    for rank in (0, 1):
        row = rank_row.RowWriter(tmp_path, rank)
        row.enter(phase if rank == 0 else rank_row.CELL)
    PeerWatch(cast(Any, ranks), cast(Any, ranks), cast(Any, ranks))
    assert ranks.over.wait(WAIT_S)
    ranks.done(ranks)  # rank 0 has ended too: nothing is left to watch
    assert ranks.ends == [[1]]


def test_a_rank_that_has_not_begun_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_watch, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(run_job, "GRACE_S", 0.0)
    monkeypatch.setattr(run_job, "INTERRUPTED_S", 0.0)
    for rank in (0, 1):
        rank_row.RowWriter(tmp_path, rank)
    ranks = Ranks([], tmp_path)
    PeerWatch(cast(Any, ranks), cast(Any, ranks), cast(Any, ranks))
    assert ranks.over.wait(WAIT_S)
    assert ranks.ends == [[0, 1]]


def test_ranks_of_a_deleted_run_that_wait_for_one_that_was_interrupted_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_watch, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(run_job, "INTERRUPTED_S", 0.0)
    ranks = Ranks([], tmp_path)
    ranks.is_deleted = True
    PeerWatch(cast(Any, ranks), cast(Any, ranks), cast(Any, ranks))
    assert ranks.over.wait(WAIT_S)
    assert ranks.released and all(failed == [1] for failed in ranks.released)


class Stalled:
    """What a run's stalls are when rank 1 has kept rank 0 waiting for half an hour."""

    waited_s, missing = run_job.HANG_S, (1,)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def look(self) -> None: ...


def test_a_rank_that_keeps_others_waiting_for_half_an_hour_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_watch, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(peer_watch, "StallWatch", Stalled)
    monkeypatch.setattr(run_job, "GRACE_S", 0.0)
    monkeypatch.setattr(run_job, "INTERRUPTED_S", WAIT_S)
    ranks = Ranks([], tmp_path)
    ranks.interrupted = lambda: monkeypatch.setattr(run_job, "INTERRUPTED_S", 0.0)
    monkeypatch.setattr(ranks, "dead_ranks", dict)
    PeerWatch(cast(Any, ranks), cast(Any, ranks), cast(Any, ranks))
    assert ranks.over.wait(WAIT_S)
    assert ranks.asked == ["interrupt", "kill"] and ranks.ends == [[0, 1]]
    assert all(late == [1] for late in ranks.released)


# ------------------------------------------------------------------------------------------- branches, progress, timers


def test_a_branch_that_cannot_start_is_told_to_whoever_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(branching, "_launchers", [fails])
    branching.launch_in_thread(run, {"resume": f"{run}@3"})
    for made in threading.enumerate():
        if made.name.startswith("branch-"):
            made.join(WAIT_S)
    assert branching._failures.pop(run) == "ValueError: nobody thought of this"
    assert "did not start: ValueError: nobody" in capfd.readouterr().err


def test_progress_that_is_no_longer_shown_is_reported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "follow_lines", fails)
    follow.follow_in_background(cast(Any, SimpleNamespace(name="fake")))
    for made in threading.enumerate():
        if made.name == "progress-fake":
            made.join(WAIT_S)
    assert "the progress of run 'fake' is no longer shown; the run continues" in capfd.readouterr().err


def test_this_room_costs_nothing_to_import() -> None:
    code = "import sys, workbench.core.background; assert not {'torch', 'numpy', 'IPython'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

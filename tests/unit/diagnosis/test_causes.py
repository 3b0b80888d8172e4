"""Each cause with real processes that are stuck by it: the verdict names the rank, the collective and the cause."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import WAIT_S, until
from workbench.core.live.stack_text import fatal_place, parse, without_other_threads
from workbench.core.mesh import Mesh
from workbench.diagnosis import stacks, view
from workbench.diagnosis.causes import Cause
from workbench.diagnosis.diagnose import diagnose
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.diagnosis.view import look

Start = Callable[..., subprocess.Popen[str]]
FIFTH = "dp/5/all_reduce"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a stuck process as a rank, and returns it when it is stuck."""
    started: list[subprocess.Popen[str]] = []

    def begin(rank: int, what: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.unit.diagnosis.stuck", str(tmp_path), str(rank), what, *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until_ready(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"


def stop(process: subprocess.Popen[str]) -> None:
    """Stops a process, and returns when none of its threads runs any more."""
    os.kill(process.pid, signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")
    until(lambda: all(re.search(r"\) [Tt] ", (thread / "stat").read_text()) for thread in threads.iterdir()))


def verdict(directory: Path, ranks: int = 2, deaths: dict[int, str] | None = None) -> Diagnosis:
    found = diagnose(look(directory, range(ranks), deaths or {}))
    print(found)
    return found


@pytest.mark.parametrize(
    ("what", "cause", "words"),
    [
        ("users_code", Cause.USER_CODE, "it is in phase forward_backward, stuck.py:"),
        ("loads", Cause.DATA_LOADER, "it is in data loading, stuck.py:"),
        ("debugs", Cause.DEBUGGER, "it is in the debugger, "),
        ("builds", Cause.JIT_BUILD, "it builds code (ninja), "),
        ("keeps_the_lock", Cause.NATIVE_CODE, "it is in native code that holds the interpreter's lock, stuck.py:"),
        ("finishes", Cause.FINISHED, "it has finished its cell"),
    ],
)
def test_what_a_late_rank_does(
    *, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, cause: Cause, words: str
) -> None:
    if what != "keeps_the_lock":  # which does not answer
        monkeypatch.setattr(view, "_ANSWER_S", WAIT_S)
    monkeypatch.setattr(stacks, "_ANSWER_S", WAIT_S)
    wait_until_ready(start(0, "waits", FIFTH), start(1, what))
    found = verdict(tmp_path)
    assert (found.cause, found.missing, found.waiting) == (cause, (1,), (0,))
    assert found.sentence.startswith(
        f"rank 1 has not entered all_reduce no. 5 of group dp (10 MB, line 3 of the cell): {words}"
    )
    assert re.search(r"rank 0 has waited \d", found.sentence) and found.ranks[0].waited_s >= 12
    assert found.ranks[1].stacks or what == "finishes"
    page = found._repr_html_()
    assert page.startswith("<p><b>rank 1 has not entered") and page.count("<details>") == 3


def test_a_message_that_nobody_receives(start: Start, tmp_path: Path) -> None:
    wait_until_ready(start(0, "waits", "dp/1/isend"), start(1, "finishes"))
    found = verdict(tmp_path)
    assert (found.cause, found.missing, found.waiting) == (Cause.FINISHED, (1,), (0,))
    assert found.sentence.startswith("rank 1 has not received message 1 to rank 1 of group dp (isend, 10 MB, line 3")
    assert found.advice.startswith("post a receive for each message")


def test_a_stopped_rank_and_one_that_died(start: Start, tmp_path: Path) -> None:
    stopped = start(1, "waits", FIFTH)
    wait_until_ready(start(0, "waits", FIFTH, "dp/6/all_reduce"), stopped)
    stop(stopped)
    found = verdict(tmp_path)
    assert (found.cause, found.missing) == (Cause.STOPPED, (1,))
    assert found.sentence.startswith("rank 1 has not entered all_reduce no. 6 of group dp")
    assert f"it is stopped by a signal (SIGSTOP, process {stopped.pid})" in found.sentence
    assert f"Kill -CONT {stopped.pid} lets it go on" in str(found) and found.ranks[1].state == "stopped"
    stopped.kill()
    stopped.wait()
    for deaths, words in (({}, "its process has ended"), ({1: "killed by signal 9"}, "killed by signal 9")):
        found = verdict(tmp_path, deaths=deaths)
        assert (found.cause, found.missing) == (Cause.DEAD_PEER, (1,)) and f"it has died: {words}" in found.sentence


def test_a_rank_that_is_stopped_and_continued_in_turn(start: Start, tmp_path: Path) -> None:
    late = start(1, "users_code")
    wait_until_ready(start(0, "waits", FIFTH), late)
    over = threading.Event()

    def alternate() -> None:
        while not over.wait(0.01):
            os.kill(late.pid, signal.SIGSTOP)
            over.wait(0.06)
            os.kill(late.pid, signal.SIGCONT)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        found = until(lambda: found if "in turn" in (found := verdict(tmp_path)).sentence else None)
    finally:
        over.set()
        thread.join()
    assert found.cause == Cause.STOPPED and "% of the time, by signals that stop and continue it" in found.sentence


@pytest.mark.parametrize(
    ("both", "cause", "words"),
    [
        (("a/1/all_reduce", "b/1/all_reduce"), Cause.DEADLOCK, "ranks 0-1 wait for each other: rank 0 is in"),
        ((FIFTH, "dp/5/broadcast"), Cause.MISMATCH, "rank 1 called broadcast"),
        ((FIFTH, FIFTH), Cause.TRANSFER, "all members have entered all_reduce no. 5 of group dp"),
        (("dp/0/recv", "dp/0/recv"), Cause.TRANSFER, "all members have entered recv"),
        (("a/1/isend", "b/1/isend"), Cause.DEADLOCK, "rank 0 is in message 1 to rank 1 of group a (isend, 10 MB, line"),
    ],
    ids=["groups", "mismatch", "transfer", "messages", "both send first"],
)
def test_ranks_that_wait_for_each_other(
    start: Start, tmp_path: Path, both: tuple[str, str], cause: Cause, words: str
) -> None:
    wait_until_ready(*(start(rank, "waits", collective) for rank, collective in enumerate(both)))
    found = verdict(tmp_path)
    assert found.cause == cause and words in found.sentence


def test_the_rank_that_keeps_three_groups_waiting(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 3 is late for its own group; the others wait for it, two of them for a rank that waits itself."""
    monkeypatch.setattr(view, "_ANSWER_S", WAIT_S)
    started = [
        start(0, "waits", "x/2/all_reduce/ranks 0-1"),
        start(1, "waits", "y/4/all_gather/ranks 1, 3"),
        start(2, "waits", "z/9/all_reduce/ranks 2-3"),
        start(3, "loads"),
    ]
    wait_until_ready(*started)
    found = diagnose(look(tmp_path, range(4), {}), Mesh(dp=2, tp=2))
    assert (found.cause, found.missing, found.waiting) == (Cause.DATA_LOADER, (3,), (0, 1, 2))
    assert found.ranks[0].waits_for == (1,) and found.ranks[1].waits_for == (3,)
    assert "of group dp" in found.sentence or "of group tp" in found.sentence, "the groups have the names of axes"


def test_ranks_that_wait_for_nobody(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "_ANSWER_S", WAIT_S)
    wait_until_ready(start(0, "users_code"), start(1, "finishes"))
    found = verdict(tmp_path)
    assert (
        found.sentence.startswith("no rank waits for another; rank 0 is in phase forward_backward")
        and not found.missing
    )


def test_py_spy_stands_in_for_a_rank_that_cannot_answer(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is a stand-in that prints what py-spy 0.4 prints."""
    program = tmp_path / "py-spy"
    program.write_text(
        '#!/bin/sh\nprintf \'Process %s: python\\n\\nThread 7 (idle): "Thread-1"\\n    run (a.py:2)\\n'
        'Thread 9 (active): "MainThread"\\n    step (train.py:17)\\n    <module> (train.py:20)\\n\' "$5"\n'
    )
    program.chmod(0o755)
    stopped = start(0, "users_code")
    wait_until_ready(stopped)
    stop(stopped)
    assert verdict(tmp_path, ranks=1).ranks[0].stacks == ()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = verdict(tmp_path, ranks=1).ranks[0].stacks
    assert first.is_main and [(frame.file, frame.line, frame.function) for frame in first.frames] == [
        ("train.py", 17, "step"),
        ("train.py", 20, "<module>"),
    ]
    assert not second.is_main


def test_stacks_are_those_of_faulthandler() -> None:
    text = (
        'Thread 0x00000000000000aa (most recent call first):\n  File "/x/a b.py", line 4 in wait\n\n'
        'Current thread 0x00000000000000bb (most recent call first):\n  File "/ipykernel_1/2.py", line 17 in <module>\n'
    )
    main, other = parse(text, 0xBB)
    assert main.is_main and main.frames[0].is_of_cell and str(main.frames[0]) == "line 17 of the cell"
    assert not other.is_main and other.frames[0].file == "/x/a b.py"


def test_a_fatal_signal_leaves_the_line_that_it_came_in(tmp_path: Path) -> None:
    program = tmp_path / "crash.py"
    program.write_text(
        "import ctypes, faulthandler, threading\nfaulthandler.enable()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def read():\n    ctypes.string_at(0)\n\nread()\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV
    text = without_other_threads(f"earlier output\n{done.stderr}")
    assert text.startswith("earlier output\nFatal Python error: Segmentation fault\n\nCurrent thread 0x")
    assert "Thread 0x" not in text and "Extension modules" not in text
    assert fatal_place(text) == "crash.py:5 in read: ctypes.string_at(0)"
    assert not fatal_place("no such thing")


def test_a_fatal_signal_in_a_native_thread_leaves_what_native_code_wrote() -> None:
    report = (
        "earlier\nterminate called after throwing an instance of 'Fatal Python error: Aborted\n\n"
        'Thread 0x00000000000000aa (most recent call first):\n  File "/x/a.py", line 4 in wait\n\n'
        'Thread 0x00000000000000bb (most recent call first):\n  File "/x/b.py", line 5 in run\ngloo::Error\'\n'
        "  what():  sizes differ\n\nExtension modules: torch._C (total: 1)\n"
    )
    assert without_other_threads(report) == (
        "earlier\nterminate called after throwing an instance of 'Fatal Python error: Aborted\ngloo::Error'\n"
        "  what():  sizes differ"
    )
    assert not fatal_place(report)


def test_looking_changes_nothing_in_a_rank(start: Start, tmp_path: Path) -> None:
    process = start(0, "users_code")
    wait_until_ready(process)
    before = sorted(path.name for path in tmp_path.iterdir())
    for _ in range(3):
        verdict(tmp_path, ranks=1)
    assert process.poll() is None and sorted(path.name for path in tmp_path.iterdir()) == before

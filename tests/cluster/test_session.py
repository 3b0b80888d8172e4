"""Cells, values and signals on two real ranks."""

import os
import queue
import random
import signal
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from tests.waiting import WAIT_S, once, until
from workbench.cluster.cells import Submission
from workbench.cluster.session import Session
from workbench.core.live.rank_row import IDLE, read_row
from workbench.errors import CellError, ClusterError, RankDiedError, RanksBusyError


@dataclass(frozen=True)
class JobThatIs:
    """A job that trains, or is over."""

    is_over: bool
    name: str = "first"
    release_timeout_s: float = 300.0

    def step_of(self, rank: int) -> int:
        return 40 + rank


def test_ranks_have_the_variables_of_torchrun(ranks):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"]
    ranks.execute(f"import os; found = [os.environ[name] for name in {names}] + [os.getpid(), os.getcwd()]")
    found = ranks.pull("found")
    port = str(ranks.master_port)
    assert found[0][:6] == ["0", "0", "2", "2", "127.0.0.1", port] and found[1][:6] == [
        "1",
        "1",
        "2",
        "2",
        "127.0.0.1",
        port,
    ]
    assert {rank: row[7] for rank, row in found.items()} == ranks.pids
    assert found[0][8] == os.getcwd()
    assert "IPP_CONNECTION_INFO" not in ranks.execute("import os; list(os.environ)")[0].result


def test_outputs_are_collected_by_rank(ranks):
    result = ranks.execute(
        "import os, sys\nrank = int(os.environ['RANK'])\nprint('out', rank)\nprint('err', file=sys.stderr)\n"
        "from IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))\nrank * 10"
    )
    assert result.ok and result.ranks == (0, 1)
    assert [(each.stdout, each.stderr, each.result) for each in result.outputs.values()] == [
        ("out 0\n", "err\n", "0"),
        ("out 1\n", "err\n", "10"),
    ]
    assert result[1].displays[0]["text/html"] == "<b>x</b>"


def test_an_error_names_the_ranks_and_the_line(ranks):
    result = ranks.execute("import os\nvalue = {'0': 1}[os.environ['RANK']]")
    assert result[0].error is None and result[1].error.ename == "KeyError"
    with pytest.raises(CellError, match="rank 1: KeyError: '1'") as caught:
        result.raise_on_error()
    assert "line 2" in caught.value.traceback


def test_push_and_pull_arrays(ranks):
    ranks.push({"array": np.arange(200_000.0), "word": "x"})
    ranks.execute("import os; array = array + int(os.environ['RANK'])")
    assert ranks.pull("array")[1][-1] == 200_000.0
    assert ranks.pull(["word", "array"], [0])[0]["word"] == "x"
    with pytest.raises(CellError, match="ranks 0-1: NameError: name 'nowhere' is not defined"):
        ranks.pull("nowhere")
    with pytest.raises(CellError, match="rank 1: NameError"):
        ranks.pull("nowhere", [1])


def test_submit_does_not_wait_and_calls_the_done_callback(ranks, tmp_path):
    told, gate = threading.Event(), tmp_path / "gate"
    wait = f"if rank:\n    while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    submission = ranks.submit(f"import os, time\n{wait}\n1 / rank")
    submission.add_done_callback(lambda _: told.set())
    assert not submission.done()
    with pytest.raises(RanksBusyError, match="an earlier cell still runs on rank"):
        ranks.execute("1")
    assert until(submission.finished_ranks) == [0] and not submission.done()
    assert submission.error(0).ename == "ZeroDivisionError"
    assert [each.state for each in ranks.status()] == ["idle", "running cell"]
    gate.touch()
    assert told.wait(300) and submission.done() and submission.error(1) is None


def test_busy_ranks_refuse_a_cell(ranks):
    ranks.job = JobThatIs(is_over=False)
    try:
        with pytest.raises(RanksBusyError, match="'first' is training on these ranks"):
            ranks.execute("1")
        assert [(each.state, each.step) for each in ranks.status()] == [("training", 40), ("training", 41)]
    finally:
        ranks.job = None


def test_a_cell_waits_until_an_ended_run_releases_the_ranks(ranks):
    asked = threading.Event()

    class JobThatEnds:
        name, release_timeout_s = "first", 300.0

        @property
        def is_over(self):
            asked.set()
            return True

    ranks.job = JobThatEnds()
    once(asked.is_set, lambda: setattr(ranks, "job", None))
    assert ranks.execute("1").ok and ranks.job is None and asked.is_set()


def test_interrupt_of_a_sleeping_cell(ranks, begun):
    once(begun.on_both, ranks.interrupt)
    result = ranks.execute(begun.cell())
    assert {each.error.ename for each in result.outputs.values()} == {"KeyboardInterrupt"}
    assert ranks.execute("print('after')")[1].stdout == "after\n"


def test_an_interrupt_at_any_moment_loses_no_reply(ranks):
    """Interrupts that come while nothing, the kernel's own code or a cell runs: a cell ends well, or is interrupted."""
    ends = []
    storm = threading.Event()

    def interrupt_on_and_on():
        numbers = random.Random(0)
        while not storm.wait(numbers.uniform(0.0, 0.004)):
            ranks.interrupt()

    thread = threading.Thread(target=interrupt_on_and_on)
    thread.start()
    try:
        for _ in range(60):
            outputs = ranks.execute("1 + 1\n2 + 2", timeout=300)
            ends += [each.error.ename if each.error else each.result for each in outputs.outputs.values()]
    finally:
        storm.set()
        thread.join()
    assert set(ends) <= {"4", "KeyboardInterrupt"} and len(ends) == 120
    assert [each.result for each in ranks.execute("'after'").outputs.values()] == ["'after'"] * 2


TELLS = """
import os, signal
interrupted = []
class Told(Exception):
    def __str__(self):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            interrupted.append(None)
        return "kept"
raise Told
"""


def test_an_interrupt_while_a_traceback_is_made_breaks_nothing(ranks):
    outputs = ranks.execute(TELLS)
    assert {(each.error.ename, each.error.evalue) for each in outputs.outputs.values()} == {("Told", "kept")}
    assert [each.result for each in ranks.execute("interrupted").outputs.values()] == ["[]"] * 2


def hold_the_lock(ranks, folder):
    """For 1.5 s a thread of each rank holds the interpreter's lock, from when the rank has nothing else to do."""
    code = f"""import ctypes, pathlib, threading
def hold():
    time.sleep(0.2)
    pathlib.Path({str(folder)!r}, f"holds-{{rank}}").touch()
    ctypes.PyDLL(None).usleep(1_500_000)
threading.Thread(target=hold).start()"""
    ranks.execute(f"import time\n{code}").raise_on_error()
    until(lambda: len(list(folder.glob("holds-*"))) == 2)


def test_an_interrupt_that_overtakes_its_cell_ends_it(ranks, tmp_path):
    """A thread that holds the interpreter's lock lets a rank's kernel see the interrupt before the cell."""
    hold_the_lock(ranks, tmp_path)
    submission = ranks.submit("import time; time.sleep(600)")
    ranks.interrupt()
    assert submission.wait_until_finished(300)
    assert {each.error.ename for each in submission.result().outputs.values()} == {"KeyboardInterrupt"}


def test_an_interrupt_that_was_sent_before_a_cell_does_not_end_it(ranks, tmp_path):
    """A rank that sees the interrupt late, when the next cell has been sent, knows when it was sent."""
    hold_the_lock(ranks, tmp_path)
    ranks.interrupt()
    assert [each.result for each in ranks.execute("'after'").outputs.values()] == ["'after'"] * 2


def test_ctrl_c_reaches_the_ranks(ranks, begun):
    once(begun.on_both, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ranks.execute(begun.cell())
    until(lambda: not ranks.is_busy())  # the prompt comes back after 3 s, also where a busy machine takes longer
    assert ranks.execute("print('after')")[0].stdout == "after\n"


def test_a_rank_whose_reply_is_on_the_way_is_not_ended(ranks, begun, monkeypatch):
    """It has ended the cell; the notebook, or the machine, is busy."""
    ranks.execute("kept = 5")
    told, add_reply, end_stuck = threading.Event(), Submission.add_reply, ranks._end_stuck
    submission = ranks.submit(begun.cell())
    until(begun.on_both)

    def interrupt(cell):
        ranks.interrupt()
        until(lambda: all(read_row(ranks.directory, rank).phase == IDLE for rank in (0, 1)))

    monkeypatch.setattr(Submission, "add_reply", lambda *reply: (told.wait(WAIT_S), add_reply(*reply)))
    monkeypatch.setattr(ranks._cells, "interrupt", interrupt)
    monkeypatch.setattr(ranks, "_end_stuck", lambda stuck: (told.set(), end_stuck(stuck)))
    pids = ranks.pids
    ranks.interrupt_cell(submission)
    assert submission.done() and ranks.pids == pids and not ranks.dead
    assert ranks.execute("kept")[1].result == "5"


def test_a_timeout_names_the_ranks(ranks):
    submission = ranks.submit("import time; time.sleep(600 * rank)")
    until(submission.finished_ranks)
    with pytest.raises(ClusterError, match=r"rank 1 did not finish within 0.5 s"):
        ranks.wait(submission, timeout=0.5)
    assert [each.state for each in ranks.status()] == ["idle", "running cell"]
    ranks.interrupt()
    until(lambda: ranks.status()[1].state == "idle")
    with pytest.raises(ClusterError, match=r"rank 0 did not finish within 0.1 s"):
        ranks.execute("import time; time.sleep(600)", [0], timeout=0.1)
    ranks.interrupt([0])
    until(lambda: not ranks.is_busy())
    assert ranks.execute("1").ok


def test_long_output_arrives_in_full(ranks):
    result = ranks.execute("for number in range(100_000): print(number)")
    assert result[1].stdout.count("\n") == 100_000 and result[0].stdout.endswith("99999\n")


def test_status_shows_processes(ranks):
    status = ranks.status()
    assert [each.pid for each in status] == [ranks.pids[0], ranks.pids[1]]
    assert all(each.memory_bytes > 10 << 20 and each.device == "cpu" for each in status)


def test_up_keeps_matching_ranks_and_an_unknown_rank_is_an_error(ranks):
    assert Session.up(2, preload="tests.cluster.preloads:light") is ranks
    with pytest.raises(ClusterError, match="rank 5: 2 ranks are up; use ranks 0 to 1"):
        ranks.execute("1", ranks=[5])


def test_a_rank_killed_in_a_cell_is_reported_at_once(fresh, begun):
    session = fresh(2)
    deaths = queue.SimpleQueue()
    session.on_rank_died(lambda rank, reason: deaths.put((rank, reason)))
    once(begun.on_both, lambda: os.kill(session.pids[1], 9))
    with pytest.raises(RankDiedError, match=r"rank 1 ended: killed by signal 9 \(SIGKILL\)"):
        session.execute(begun.cell())  # its peer goes on sleeping
    assert deaths.get(timeout=300) == (1, "killed by signal 9 (SIGKILL)")
    assert [each.state for each in session.status()] == ["running cell", "dead"]
    session.interrupt([0])
    with pytest.raises(RankDiedError, match="run %dist_up"):
        session.execute("1")
    assert fresh(2).execute("1").ok  # replaced, as it was not whole


def test_ranks_that_are_alive_can_be_used(fresh):
    session = fresh(2)
    os.kill(session.pids[0], 9)
    until(lambda: 0 in session.dead)
    assert session.execute("6 * 7", ranks=[1])[1].result == "42"
    session.down()


def test_down_ends_all_processes_when_a_callback_raises(fresh):
    session = fresh(2)

    def broken(rank: int, reason: str) -> None:
        raise ValueError(reason)

    session.submit("import time; time.sleep(60)").add_done_callback(lambda _: broken(0, "a listener's own fault"))
    with pytest.raises(ValueError, match="own fault"):
        session.down()
    assert Session.current() is None  # and no process is left: see the fixture of this directory


def test_a_rank_that_exits_by_itself(fresh):
    session = fresh(2)
    with pytest.raises(RankDiedError, match="rank 0 ended: its process ended with exit code 7"):
        session.execute("import os\nif os.environ['RANK'] == '0': os._exit(7)")

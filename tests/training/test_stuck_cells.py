"""Ranks that wait in a collective for one that cannot come are released; they keep their variables and their group."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.training.test_dist_train import SLOW, train
from tests.waiting import once, until, until_asleep
from workbench.cluster import releases
from workbench.cluster.session import Session
from workbench.core.live.collective_row import read_live
from workbench.errors import CellError, RunError

FUNCTIONAL = "from torch.distributed import _functional_collectives as fc"
TENSORS = (
    "from torch.distributed.tensor import DTensor, Partial, init_device_mesh; mesh = init_device_mesh('cpu', (2,))"
)
SUM = "import torch, torch.distributed as dist\nx = torch.ones(3)\ndist.all_reduce(x)\nx.tolist()"


def sums(session: Session) -> list[str | None]:
    return [output.result for output in session.execute(SUM).raise_on_error().outputs.values()]


def test_a_rank_that_raises_releases_those_that_wait_for_it(two_ranks: Session) -> None:
    both = ["[2.0, 2.0, 2.0]"] * 2
    assert sums(two_ranks) == both
    two_ranks.execute("kept = rank + 5\npair = dist.new_group()").raise_on_error()
    result = two_ranks.execute("if rank == 1:\n    raise ValueError('no data')\ndist.all_reduce(x)")
    with pytest.raises(CellError, match="rank 1: ValueError: no data"):
        result.raise_on_error()
    assert result[0].error is not None and result[0].error.ename == "CollectiveReleasedError"
    assert "rank 1 raised ValueError: no data; this rank was released from all_reduce of 3 float32" in (
        result[0].error.evalue
    )
    assert "line 3 of the cell: dist.all_reduce(x)" in result[0].error.evalue
    assert sums(two_ranks) == both and two_ranks.pull("kept") == {0: 5, 1: 6}
    # what only one group waits for ends that group; functional collectives bypass torch.distributed
    functional = "from torch.distributed import _functional_collectives as fc\nif rank == 0:\n    raise KeyError('z')\n"
    result = two_ranks.execute(functional + "fc.all_reduce(x, 'sum', dist.group.WORLD).tolist()")
    assert [output.error and output.error.ename for output in result.outputs.values()] == [
        "KeyError",
        "CollectiveReleasedError",
    ]
    assert sums(two_ranks) == both


def test_ranks_that_fail_by_themselves_keep_their_words(two_ranks: Session) -> None:
    result = two_ranks.execute(
        "import time\nif rank == 1:\n    raise RuntimeError('one')\ntime.sleep(0.3)\nraise RuntimeError('two')"
    )
    assert [output.error and output.error.evalue for output in result.outputs.values()] == ["two", "one"]


def test_an_error_on_all_ranks_leaves_their_groups(two_ranks: Session) -> None:
    sums(two_ranks)
    two_ranks.execute("pair = dist.new_group()").raise_on_error()
    assert not two_ranks.execute("undefined").ok
    two_ranks.execute("dist.all_reduce(x, group=pair)").raise_on_error()


def test_a_failed_cell_holds_no_tensors(two_ranks: Session) -> None:
    code = "def fail():\n    local = torch.ones(9)\n    seen.append(weakref.ref(local))\n    undefined"
    two_ranks.execute(f"import gc, torch, weakref\ngc.disable()\nseen = []\n{code}").raise_on_error()
    assert not two_ranks.execute("try:\n    fail()\nexcept NameError as error:\n    raise ValueError from error").ok
    assert two_ranks.execute("gc.enable()\nseen[0]() is None")[1].result == "True"


def test_arguments_that_ranks_may_leave_out_do_not_differ(two_ranks: Session) -> None:
    sums(two_ranks)
    result = two_ranks.execute(
        "dist.all_reduce(x, dist.ReduceOp.SUM) if rank else dist.all_reduce(x)\n"
        "dist.broadcast(x, src=0) if rank else dist.broadcast(x, group_src=0)\n"
        "dist.reduce(x.view(1, 3), 0) if rank else dist.reduce(x, 0)\n"
        "dist.gather(x) if rank else dist.gather(x, [x.clone(), x.clone()], 0)\n"
        "dist.all_gather_object([None, None], 'a' * 100 * rank)\n"
        "dist.isend(x, 0).wait() if rank else dist.recv(x, 1)\n"
        "work = dist.all_reduce(x, async_op=True)\nwork.wait()\ndist.barrier()"
    )
    assert result.raise_on_error().ok


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("dist.all_reduce(torch.ones(3 + rank))", ("all_reduce of 3 float32", "all_reduce of 4 float32")),
        ("dist.broadcast(x, 0) if rank else dist.all_reduce(x)", ("broadcast of 3 float32", "all_reduce of 3 float32")),
        ("dist.all_reduce(x.double() if rank else x)", ("float64", "float32")),
        (
            f"{FUNCTIONAL}; fc.all_reduce(torch.ones(3 + rank), 'sum', dist.group.WORLD).tolist()",
            ("all_reduce of 3 float32", "all_reduce of 4 float32"),
        ),
        (
            f"{FUNCTIONAL}; fc.all_gather_single(x, 0, [0, 1]) if rank else dist.all_reduce(x)",
            ("all_gather_single of 3 float32", "all_reduce of 3 float32"),
        ),
        (
            f"{TENSORS}; DTensor.from_local(torch.ones(3 + rank), mesh, [Partial()], run_check=False).full_tensor()",
            ("all_reduce of 3 float32", "all_reduce of 4 float32"),
        ),
    ],
)
def test_collectives_that_differ_are_told_on_both_sides(two_ranks: Session, code: str, words: tuple[str, str]) -> None:
    sums(two_ranks)
    result = two_ranks.execute(code)
    with pytest.raises(CellError, match=r"CollectiveMismatchError: collective \d+ of group world") as told:
        result.raise_on_error()
    assert all(word in told.value.evalue for word in words) and "line 1 of the cell" in told.value.evalue
    assert "record.py" not in told.value.traceback and "functional.py" not in told.value.traceback
    assert sums(two_ranks) == ["[2.0, 2.0, 2.0]"] * 2


def test_a_message_that_is_not_received_as_it_was_sent_is_told(two_ranks: Session) -> None:
    """In gloo, one that is too large ends the receiver's process, and one that is too small arrives."""
    sums(two_ranks)
    for sent, received in ((4, 3), (3, 4)):
        code = (
            f"work = dist.irecv(torch.ones({received}), 0) if rank else dist.isend(torch.ones({sent}), 1)\nwork.wait()"
        )
        with pytest.raises(CellError, match=r"CollectiveMismatchError: message 1 of group world") as told:
            two_ranks.execute(code).raise_on_error()
        assert f"isend of {sent} float32, to rank 1" in told.value.evalue
        assert (
            f"irecv of {received} float32, from rank 0" in told.value.evalue
            and "line 1 of the cell" in told.value.evalue
        )
        assert sums(two_ranks) == ["[2.0, 2.0, 2.0]"] * 2
    both = "ops = [dist.P2POp(dist.isend, x, 1 - rank), dist.P2POp(dist.irecv, y, 1 - rank)]\n"
    wait = "[work.wait() for work in dist.batch_isend_irecv(ops)]"
    assert two_ranks.execute(f"y = torch.ones(3)\n{both}{wait}").ok
    anyone = "if rank == 0: dist.send(x, 1)\nelse: dist.recv(x)"  # from then on, messages are not counted
    assert two_ranks.execute(anyone).ok and two_ranks.execute(f"{both}{wait}").ok


def test_a_training_tells_collectives_that_differ(two_ranks: Session, shell: InteractiveShell) -> None:
    differs = "import os, torch.distributed as dist\n    dist.all_reduce(torch.ones(3 + int(os.environ['RANK'])))"
    run = train(shell, "-n 2 --steps 5 --quiet", SLOW.replace("time.sleep(0.02)", differs))
    with pytest.raises(RunError, match=r"CollectiveMismatchError: collective .* all_reduce of [34] float32"):
        run.wait(timeout=300)
    assert not two_ranks.dead and sums(two_ranks) == ["[2.0, 2.0, 2.0]"] * 2


def test_an_interrupt_breaks_a_collective(two_ranks: Session, shell: InteractiveShell, capsys) -> None:
    sums(two_ranks)
    two_ranks.execute("mine = rank").raise_on_error()
    directory: Path = two_ranks._server.directory

    def waits() -> bool:
        live = read_live(directory, 0)
        return live is not None and live.waiting and live.description.shape == "7"

    def press() -> None:
        until_asleep(two_ranks.pids[0])  # an interrupt before native code waits would end the cell by itself
        os.kill(os.getpid(), signal.SIGINT)

    once(waits, press)
    result = shell.run_cell("%%dist\nif rank == 0:\n    dist.all_reduce(torch.ones(7))")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert "collectives that wait are broken" in capsys.readouterr().err
    until(lambda: not two_ranks.is_busy())  # a busy machine takes longer than a person is kept
    assert sums(two_ranks) == ["[2.0, 2.0, 2.0]"] * 2 and two_ranks.pull("mine") == {0: 0, 1: 1}


def press_when(is_so: Callable[[], bool]) -> None:
    """Presses Ctrl-C when something is so, in a thread."""

    def press() -> None:
        deadline = time.monotonic() + 300
        while not is_so() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


IN_C = "__import__('collections').deque(__import__('itertools').repeat(0), 0)"
IGNORES = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"


@pytest.mark.parametrize(
    ("code", "replaced"),
    [
        (f"open(f'{{flag}}-{{rank}}', 'w').close()\nif rank == 1: {IN_C}", "rank 1 was started anew, without its"),
        (f"{IGNORES}\nopen(f'{{flag}}-{{rank}}', 'w').close()\ntime.sleep(600)", "ranks 0-1 were started anew,"),
    ],
    ids=["one rank", "all ranks"],
)
def test_one_ctrl_c_is_enough_where_ranks_do_not_end(
    *,
    two_ranks: Session,
    shell: InteractiveShell,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: str,
    replaced: str,
) -> None:
    monkeypatch.setattr(releases, "BOUND_S", 0.1)
    flag = tmp_path / "reached"
    two_ranks.execute(f"kept, flag = rank + 5, {str(flag)!r}").raise_on_error()
    one = replaced.startswith("rank 1")
    reached = [tmp_path / f"reached-{rank}" for rank in (0, 1)]
    press_when(lambda: all(map(Path.exists, reached)) and (not one or two_ranks.status()[0].state == "idle"))
    result = shell.run_cell(f"%%dist\n{code}")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert f"interrupt: {replaced}" in capsys.readouterr().err
    assert sums(two_ranks) == ["[2.0, 2.0, 2.0]"] * 2
    assert not one or two_ranks.pull("kept", [0]) == {0: 5}


def test_ctrl_c_ends_a_copy(two_ranks: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, begin in (("sleeps", "import time"), ("ignores", IGNORES.replace("\n", "; "))):
        flag = tmp_path / name
        reduce = f"{begin}; open({str(flag)!r}, 'w').close(); time.sleep(600)"
        code = f"class Slow:\n    def __reduce__(self):\n        {reduce}\nslow, kept = Slow(), rank"
        two_ranks.execute(code).raise_on_error()
        if name == "ignores":
            monkeypatch.setattr(releases, "BOUND_S", 0.1)
        press_when(flag.exists)
        with pytest.raises(KeyboardInterrupt):
            two_ranks.pull("slow", [1])
        assert two_ranks.execute("'kept' in dir()")[1].result == str(name == "sleeps")
        assert two_ranks.pull("kept", [0]) == {0: 0}


def test_an_interrupt_just_before_a_collective_leaves_the_ranks_in_step(two_ranks: Session) -> None:
    """Ranks number the collectives of a group: one that is counted, and then not called, would shift them for good."""
    sums(two_ranks)
    interrupted = """from unittest import mock
from workbench.engine.collectives.record import Record
if rank == 0:
    with mock.patch.object(Record, "_compare", side_effect=KeyboardInterrupt):
        dist.all_reduce(torch.ones(7))"""
    assert not two_ranks.execute(interrupted).ok
    assert sums(two_ranks) == ["[2.0, 2.0, 2.0]"] * 2


def test_one_rank_is_replaced_and_two_are_added(two_ranks: Session, shell: InteractiveShell, capsys) -> None:
    two_ranks.execute("kept = rank + 5").raise_on_error()
    pid = two_ranks.pids[0]
    two_ranks.end_ranks([1], "tested")
    until(lambda: two_ranks.dead)
    shell.run_line_magic("dist_up", "-n 2")
    assert "rank 1 was started anew, without its variables; rank 0 keeps its variables" in capsys.readouterr().out
    assert Session.current() is two_ranks and two_ranks.pids[0] == pid and not two_ranks.dead
    assert sums(two_ranks) == ["[2.0, 2.0, 2.0]"] * 2 and two_ranks.pull("kept", [0]) == {0: 5}
    shell.run_line_magic("dist_up", "-n 4")
    assert "ranks 2-3 were added; ranks 0-1 keep their variables" in capsys.readouterr().out
    assert sums(two_ranks) == ["[4.0, 4.0, 4.0]"] * 4 and two_ranks.pull("kept", [0]) == {0: 5}
    worlds = two_ranks.execute("import os; (world_size, os.environ['WORLD_SIZE'], dist.get_world_size())")
    assert {output.result for output in worlds.outputs.values()} == {"(4, '4', 4)"}
    two_ranks.restart_ranks([2])
    assert str(two_ranks.renewal).startswith("rank 2 was started anew") and sums(two_ranks) == ["[4.0, 4.0, 4.0]"] * 4
    two_ranks.down()

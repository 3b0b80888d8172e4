"""The magics of ranks in an IPython shell: parsed, called, shown."""

import os
import signal
import sys

import pytest

from magics.cluster import ClusterMagics, StatusTable
from magics.tracebacks import end_at_the_cell
from tests.cluster.conftest import LIGHT
from tests.shell import bare_shell
from tests.waiting import once, until_asleep
from workbench.cluster.session import Session
from workbench.errors import CellError, ClusterError, ConfigError, RankDiedError


@pytest.fixture
def shell():
    with bare_shell() as shell:
        shell.register_magics(ClusterMagics)
        yield shell


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setitem(Session.up.__func__.__kwdefaults__, "preload", LIGHT)


def test_equal_output_is_shown_once(ranks, shell, capsys):
    shell.run_cell_magic("dist", "", "import os\nprint('same')\nos.environ['WORLD_SIZE']")
    assert capsys.readouterr().out == "ranks 0-1\nsame\n'2'\n"


def test_different_output_is_shown_by_rank_and_targets_are_kept(ranks, shell, capsys):
    shell.run_cell_magic("dist", "", "import os; print('rank', os.environ['RANK'])")
    assert capsys.readouterr().out == "rank 0\nrank 0\nrank 1\nrank 1\n"
    shell.run_cell_magic("dist", "--targets 1", "import os; print('only', os.environ['RANK'])")
    assert capsys.readouterr().out == "rank 1\nonly 1\n"


def test_figures_are_displayed(ranks, shell, capsys):
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        shell.run_cell_magic("dist", "-t 1", "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert [sorted(each.data) for each in captured.outputs] == [["image/png", "text/plain"]]


def test_an_error_is_raised_once_with_its_ranks(ranks, shell, capsys):
    with pytest.raises(CellError, match="ranks 0-1: ZeroDivisionError: division by zero"):
        shell.run_cell_magic("dist", "", "x = 1\nx / 0")
    result = shell.run_cell("%%dist\n1 / 0")
    assert not result.success
    shown = capsys.readouterr().out
    assert shown.count("Traceback") == 1 and "session.py" not in shown


def test_long_output_is_shortened(ranks, shell, capsys):
    shell.run_cell_magic("dist", "", "for number in range(100_000): print(number)")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 402 and "... 99,600 lines left out ..." in lines and lines[-1] == "99999"


def test_push_and_pull_copy_values(ranks, shell):
    shell.user_ns["number"] = 20
    shell.run_line_magic("dist_push", "number")
    with pytest.raises(ConfigError, match="not defined in the notebook: nothing"):
        shell.run_line_magic("dist_push", "nothing")
    shell.run_cell_magic("dist", "", "import os; number += int(os.environ['RANK'])")
    assert shell.run_line_magic("dist_pull", "number") == {0: 20, 1: 21}
    assert shell.run_line_magic("dist_pull", "-t 1 number") == 21
    assert shell.user_ns["number"] == 20
    shell.run_cell("found = %dist_pull -t 0 number rank")
    assert shell.user_ns["found"] == {"number": 20, "rank": 0}


def test_pull_assigns_only_into_names_that_are_given(ranks, shell):
    ranks.push({"left": 1, "right": 2})
    assert shell.run_line_magic("dist_pull", "-t 0 left right --into a,b") is None
    assert (shell.user_ns["a"], shell.user_ns["b"]) == (1, 2)
    assert not {"left", "right"} & set(shell.user_ns)
    for wrong in ("a", "a,b,c", "a,2b"):
        with pytest.raises(ConfigError, match="--into left,right"):
            shell.run_line_magic("dist_pull", f"left right --into {wrong}")


def test_a_failed_pull_and_an_interrupted_cell_speak_of_ranks_only(ranks, shell, capsys, begun):
    shell.run_cell("%dist_pull nowhere")
    shown = capsys.readouterr().out
    assert "ranks 0-1: NameError: name 'nowhere' is not defined" in shown and "Traceback" not in shown

    def press():
        for pid in ranks.pids.values():
            until_asleep(pid)  # in the line after the one that says that it runs
        os.kill(os.getpid(), signal.SIGINT)

    once(begun.on_both, press)
    result = shell.run_cell(f"%%dist\n{begun.cell()}")
    shown = capsys.readouterr().out
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert "interrupted: ranks 0-1 stopped" in shown and "line 3" in shown
    assert "session.py" not in shown and "ipyparallel" not in shown and "interruptible.py" not in shown


def test_status_and_bad_targets(ranks, shell):
    shown = shell.run_line_magic("dist_status", "")
    assert isinstance(shown, StatusTable) and str(ranks.pids[1]) in repr(shown)
    with pytest.raises(ConfigError, match="rank 9 in -t '9', but 2 ranks are up"):
        shell.run_cell_magic("dist", "-t 9", "1")


def test_up_and_down(fresh, shell, capsys, begun):
    with pytest.raises(ClusterError, match="no ranks are up: %dist_up starts them"):
        shell.run_cell_magic("dist", "", "1")
    with pytest.raises(ConfigError, match=r"'-n' is not understood.*usage: %dist \[-t RANKS\]"):
        shell.run_cell_magic("dist", "-n 2", "1")
    shell.run_line_magic("dist_up", "--nproc_per_node 2")
    session = Session.current()
    shell.run_line_magic("dist_up", "-n 2")
    assert Session.current() is session and "2 ranks are up" in capsys.readouterr().out
    once(begun.on_both, lambda: session.signal(9, [1]))
    with pytest.raises(RankDiedError, match="rank 1 ended"):
        shell.run_cell_magic("dist", "", begun.cell())
    shell.run_line_magic("dist_down", "")
    assert Session.current() is None
    shell.run_line_magic("dist_down", "")
    assert "no ranks are up" in capsys.readouterr().out


def test_debug_opens_in_the_cell_of_the_user(ranks, shell, capsys):
    shell.events.register("post_run_cell", end_at_the_cell)
    for cell in ("%%dist\n1 / 0", "def mine():\n    get_ipython().run_line_magic('dist_pull', 'nowhere')\nmine()"):
        shell.run_cell(cell)
        last = sys.last_traceback
        while last.tb_next is not None:
            last = last.tb_next
        assert last.tb_frame.f_globals is shell.user_ns or last.tb_frame.f_code.co_name == "mine"

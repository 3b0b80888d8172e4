"""Names that live on ranks: ``%dist_who``, Tab in a ``%%dist`` cell, and cells whose result is kept."""

import pytest
from IPython.core.completer import provisionalcompleter

from magics import complete
from magics.cluster import ClusterMagics
from magics.names import NamesMagics
from tests.cluster.conftest import LIGHT
from tests.shell import bare_shell
from tests.waiting import WAIT_S
from workbench.cluster.names import ask
from workbench.cluster.session import Session
from workbench.errors import CellError, ConfigError


@pytest.fixture
def shell(monkeypatch):
    monkeypatch.setitem(Session.up.__func__.__kwdefaults__, "preload", LIGHT)
    with bare_shell() as shell:
        shell.register_magics(ClusterMagics, NamesMagics)
        complete.register(shell)
        yield shell


def test_who_lists_what_cells_made_and_where_ranks_differ(ranks, shell):
    shell.run_cell_magic("dist", "", "import math\nwidth, seed = 8, rank\nif rank == 1: late = [1]\ndef halve(x): ...")
    table = shell.run_line_magic("dist_who", "")
    assert {"width", "seed", "late", "halve"} <= set(table.described)
    assert not {"math", "rank", "_ask", "In"} & set(table.described)
    assert {"seed", "late"} <= set(table.differing()) and not {"width", "halve"} & set(table.differing())
    assert list(shell.run_line_magic("dist_who", "-t 1 width rank").described) == ["rank", "width"]
    with pytest.raises(ConfigError, match="no rank has a name 'widht': did you mean 'width'"):
        shell.run_line_magic("dist_who", "width widht")


def offered(shell, text):
    with provisionalcompleter():
        return [found.text for found in shell.Completer.completions(text, len(text))]


def test_tab_completes_names_of_ranks_in_their_cells_only(ranks, shell, monkeypatch):
    monkeypatch.setattr(ask, "_TAB_S", WAIT_S)
    shell.run_cell_magic("dist", "", "zebra_count = 3.5\nif rank == 1: zebra_late = 1")
    assert offered(shell, "%%dist\nzebra_more = 1\nprint(zebra") == ["zebra_count", "zebra_late", "zebra_more"]
    assert "zebra_count.is_integer" in offered(shell, "%%dist -t 0\nzebra_count.is_i")
    assert offered(shell, "print(zebra") == []
    assert "--capture" in offered(shell, "%%dist --ca")
    submission = ranks.submit("import time; time.sleep(60)")
    assert offered(shell, "%%dist\nzebra") == []  # ranks that are busy are not waited for
    ranks.interrupt()
    assert submission.wait_until_finished(300)


def test_a_captured_cell_keeps_output_and_values_by_rank(ranks, shell, capsys):
    shell.run_cell_magic("dist", "--capture kept", "for _ in range(2): print('row', rank)\n[rank, 1.5]")
    kept = shell.user_ns["kept"]
    assert capsys.readouterr().out == "" and kept.ok
    assert kept.values == {0: [0, 1.5], 1: [1, 1.5]} and kept[1].stdout == "row 1\nrow 1\n"
    assert "rank 1  [1, 1.5]  2" in repr(kept)
    shell.run_cell_magic("dist", "-t 1 --capture kept", "import threading\nthreading.Lock()")
    assert shell.user_ns["kept"].values == {} and "lock" in shell.user_ns["kept"][1].result
    assert "the output is kept, but not the value" in capsys.readouterr().err
    with pytest.raises(CellError, match="rank 0: ZeroDivisionError"):
        shell.run_cell_magic("dist", "--capture kept", "print(1 / rank)")
    assert shell.user_ns["kept"][1].stdout == "1.0\n" and "ZeroDivisionError" in repr(shell.user_ns["kept"])
    for wrong in ("3x", "for", "a.b"):
        with pytest.raises(ConfigError, match="is not a variable's name"):
            shell.run_cell_magic("dist", f"--capture {wrong}", "1")


def test_bars_of_tqdm_for_notebooks_are_text(ranks, shell, capsys):
    shell.run_cell_magic(
        "dist",
        "",
        "from tqdm.auto import tqdm\nimport tqdm.notebook as n\nfor bar in (tqdm, n.tqdm): list(bar(range(2 + rank)))",
    )
    found = capsys.readouterr()
    assert found.out == "rank 0\nrank 1\n" and found.err.count("| 3/3 [") == 2 and found.err.count("| 2/2 [") == 2


def test_a_widget_of_a_rank_is_shown_as_text(ranks, shell, capsys):
    bundle = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "IntSlider(value=0)"}
    shell.run_cell_magic("dist", "-t 0", f"from IPython.display import display\ndisplay({bundle!r}, raw=True)")
    assert capsys.readouterr().out == "rank 0\nIntSlider(value=0)\n"

"""A server keeps warm processes of several kinds, and each rank starts from the one of its kind."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.cluster.conftest import LIGHT
from workbench.cluster.base.rank_kind import RankKind
from workbench.core.frameworks import framework
from workbench.errors import ClusterError, ConfigError

MARKED = "tests.cluster.preloads:marked"
WHERE = "import sys, os; prefix, executable, mark = sys.prefix, sys.executable, os.environ.get('WARMED_BY')"


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """An interpreter of another environment, which sees the packages of this one."""
    root = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    packages = root / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return root / "bin" / "python"


def test_ranks_run_on_the_requested_interpreter(fresh, other_python: Path) -> None:
    session = fresh(2, python=str(other_python))
    session.execute(WHERE)
    assert set(session.pull("executable").values()) == {str(other_python)}
    assert set(session.pull("prefix").values()) == {str(other_python.parents[1])}
    server = session.server_pid
    session = fresh(2, python="")
    session.execute(WHERE)
    assert set(session.pull("prefix").values()) == {sys.prefix}
    assert session.server_pid == server, "one server has both warm"


def test_a_missing_interpreter_is_an_error(fresh, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?s)the warm process ended.*FileNotFoundError.*/no/such/python"):
        fresh(2, python="/no/such/python")


def test_ranks_start_from_the_warm_process_of_their_preload(fresh) -> None:
    first = fresh(2)
    server = first.server_pid
    marks = []
    for preload in (MARKED, LIGHT, MARKED):
        session = fresh(2, preload=preload)
        session.execute(WHERE)
        marks.append(set(session.pull("mark").values()))
        assert session.server_pid == server
    assert marks == [{"marked"}, {None}, {"marked"}]
    warm = session._server.warmth
    assert sorted(key.split() for key in warm) == [["cpu"], ["cpu", MARKED]], "none was made twice"


def test_omitted_options_default_to_those_of_the_current_ranks() -> None:
    default = RankKind.resolve(None, None, None, None)
    assert default == RankKind(framework="colossal", preload=framework("colossal").preload)
    now = RankKind(framework="torch", preload=framework("torch").preload, python="/x/python")
    assert RankKind.resolve(now, None, None, None) == now
    assert RankKind.resolve(now, "colossal", None, None).python == "/x/python"
    assert RankKind.resolve(now, None, "", LIGHT) == RankKind(framework="", preload=LIGHT)
    assert now.can_train("torch") and not now.can_train("colossal")
    assert RankKind.resolve(now, None, None, LIGHT).can_train("colossal"), "a preload of one's own is for any framework"
    with pytest.raises(ConfigError, match="unknown framework 'troch': did you mean 'torch'"):
        RankKind.resolve(now, "troch", None, None)

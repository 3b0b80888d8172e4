"""One IPython shell with the extension loaded, and its ranks, for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.shell import notebook_shell
from workbench.cluster.session import Session
from workbench.errors import RanksBusyError


@pytest.fixture(scope="package")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractiveShell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        with notebook_shell() as shell:
            yield shell


def _is_busy(session: Session) -> bool:
    try:
        session.check_free(range(session.n))
    except RanksBusyError:
        return True
    return False


@pytest.fixture
def two_ranks(shell: InteractiveShell) -> Session:
    """Two living, idle ranks; those that a test killed, left busy, or started in another number are replaced."""
    session = Session.current()
    if session is not None and (session.n != 2 or session.dead or _is_busy(session)):
        session.down()
        session = None
    return session or Session.up(2)


@pytest.fixture
def runs(shell: InteractiveShell) -> Path:
    from workbench.rundir.directory import home

    return home()

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


def _is_whole(session: Session) -> bool:
    """Whether two ranks are up, alive and idle. Tests kill some, leave them busy, or start others."""
    try:
        session.check_free(range(session.n))
    except RanksBusyError:
        return False
    return session.n == 2 and not session.dead


@pytest.fixture(autouse=True, scope="module")
def whole_ranks_at_the_end() -> Iterator[None]:
    """The next module finds two living, idle ranks or none."""
    yield
    session = Session.current()
    if session is not None and not _is_whole(session):
        session.down()


@pytest.fixture
def two_ranks(shell: InteractiveShell) -> Session:
    """Two living, idle ranks."""
    session = Session.current()
    if session is not None and not _is_whole(session):
        session.down()
        session = None
    return session or Session.up(2)


@pytest.fixture
def runs(shell: InteractiveShell) -> Path:
    from workbench.rundir.directory import home

    return home()

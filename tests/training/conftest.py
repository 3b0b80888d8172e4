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


def _is_usable(session: Session) -> bool:
    """Whether it has two idle ranks, dead or alive. Tests kill some, leave them busy, or start others."""
    try:
        session.check_free(range(session.n))
    except RanksBusyError:
        return False
    return session.n == 2


def _without_an_unusable_session() -> Session | None:
    session = Session.current()
    if session is None or _is_usable(session):
        return session
    session.down()
    return None


@pytest.fixture(autouse=True, scope="module")
def whole_ranks_at_the_end() -> Iterator[None]:
    """The next module finds two living, idle ranks or none."""
    yield
    session = _without_an_unusable_session()
    if session is not None and session.dead:
        Session.up(2)


@pytest.fixture
def two_ranks(shell: InteractiveShell) -> Session:
    """Two living, idle ranks. Only those that died are started, as the warm process is there."""
    _without_an_unusable_session()
    return Session.up(2)


@pytest.fixture
def runs(shell: InteractiveShell) -> Path:
    from workbench.rundir.directory import home

    return home()

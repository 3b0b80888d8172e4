"""One IPython shell with the extension loaded, and its ranks, for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.shell import notebook_shell
from workbench.cluster import releases
from workbench.cluster.session import Session
from workbench.core.frameworks import DEFAULT_FRAMEWORK
from workbench.errors import RanksBusyError


@pytest.fixture(scope="package")
def shell(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[InteractiveShell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        if not request.config.getoption("--as-shipped"):
            patch.setattr(releases, "BOUND_S", 300.0)  # no rank is ended because the machine is busy
        with notebook_shell() as shell:
            yield shell


def _end_busy_ranks() -> Session | None:
    """The session, without ranks that a test left at work, or of another framework than a training's default: these are
    ended with it."""
    session = Session.current()
    if session is not None and not session.kind.can_train(DEFAULT_FRAMEWORK):
        session.down()
    elif session is not None:
        try:
            session.check_free(range(session.n))
        except RanksBusyError:
            session.down()
    return Session.current()


@pytest.fixture(autouse=True, scope="module")
def whole_ranks_at_the_end() -> Iterator[None]:
    """The next module finds two living, idle ranks or none."""
    yield
    if _end_busy_ranks() is not None:
        Session.up(2)


@pytest.fixture
def two_ranks(shell: InteractiveShell) -> Session:
    """Two living, idle ranks. The warm process is kept: only ranks that died, or all where there are others, start."""
    _end_busy_ranks()
    return Session.up(2)


@pytest.fixture
def runs(shell: InteractiveShell) -> Path:
    from workbench.rundir.directory import home

    return home()

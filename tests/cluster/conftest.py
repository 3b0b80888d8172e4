"""Ranks for the tests of this directory, and a check that nothing is left of them."""

import contextlib
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from tests.waiting import until
from workbench.cluster import releases, spare
from workbench.cluster.session import Session

LIGHT = "tests.cluster.preloads:light"


#: children of the test run that were there before the first test of this directory (a browser, a JupyterLab)
_foreign: set[int] = set()


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Processes below a process (default: this one, without what other tests keep)."""
    if pid is not None:
        return psutil.Process(pid).children(recursive=True)
    found = []
    for child in psutil.Process().children():
        if child.pid not in _foreign:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                found += [child, *child.children(recursive=True)]
    return found


def still_there(processes) -> list[psutil.Process]:
    """Those of ``processes`` that have not ended after five minutes."""
    return [each for each in psutil.wait_procs(processes, timeout=300)[1] if each.status() != psutil.STATUS_ZOMBIE]


def directories() -> set[Path]:
    """Private directories of rank servers of this user."""
    return set(Path(tempfile.gettempdir()).glob("workbench-*"))


@pytest.fixture(autouse=True)
def nothing_left():
    """After each test: no process, directory, thread or socket more than before, but those of ``ranks``."""
    before, threads = {each.pid for each in descendants()}, set(threading.enumerate())
    kept = directories()
    yield
    session = Session.current()
    if session is not None and session is not _shared.get("session"):
        session.down()
    spare.close_spare()
    left = [each for each in descendants() if each.pid not in before and not _is_shared(each)]
    assert not still_there(left)
    ours = {path for path in directories() - kept if path != _shared_directory()}
    until(lambda: not [path for path in ours if path.exists()], "directories of rank servers are removed")
    if session is None or session is not _shared.get("session"):
        until(lambda: not set(threading.enumerate()) - threads - _kept_threads, "threads of sessions have ended")


_shared: dict[str, Session] = {}
_kept_threads: set[threading.Thread] = set()


def keep_threads() -> None:
    """Those that live now are ipyparallel's: once a ``Cluster`` ran, it keeps an event loop and its workers."""
    _kept_threads.update(threading.enumerate())


def _is_shared(process: psutil.Process) -> bool:
    session = _shared.get("session")
    if session is None:
        return False
    shared = {session.server_pid, *(each.pid for each in descendants(session.server_pid))}
    return process.pid in shared


def _shared_directory() -> Path | None:
    session = _shared.get("session")
    return session._server.directory if session is not None else None


@pytest.fixture
def ranks():
    """Two ranks, kept from test to test as long as they are whole."""
    session = _shared["session"] = Session.up(2, preload=LIGHT)
    yield session


@pytest.fixture
def fresh():
    """Brings ranks up that end with the test: ``fresh(n, **options)``."""
    _shared.clear()
    current = Session.current()
    if current is not None:
        current.down()

    def up(n: int, **options) -> Session:
        return Session.up(n, **{"preload": LIGHT, **options})

    yield up
    current = Session.current()
    if current is not None:
        current.down()


class Begun:
    """Cells that say on which of two ranks they run, by a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def cell(self, then: str = "time.sleep(600)") -> str:
        """The source of a cell that says that it runs, and does ``then``."""
        return f"import pathlib, time\npathlib.Path({str(self._folder)!r}, f'begun-{{rank}}').touch()\n{then}"

    def on_both(self) -> bool:
        """Whether both ranks run it."""
        return len(list(self._folder.glob("begun-*"))) == 2


@pytest.fixture
def begun(tmp_path) -> Begun:
    return Begun(tmp_path)


@pytest.fixture(scope="package", autouse=True)
def own_temporary_directory(tmp_path_factory):
    """Rank servers of these tests put their directories here, apart from those of other people on the machine."""
    tmp_path_factory.getbasetemp()  # pytest's own directory stays where it is
    with tempfile.TemporaryDirectory(prefix="wb-") as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", path)
        patch.setenv("TMPDIR", path)
        patch.setattr(releases, "BOUND_S", 300.0)  # no rank is ended because the machine is busy
        _foreign.update(child.pid for child in psutil.Process().children())
        yield
        session = Session.current()
        if session is not None:
            session.down()

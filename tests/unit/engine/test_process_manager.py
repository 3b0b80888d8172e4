"""The process manager by which ranks of MPI meet: what it answers, and when it ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import WAIT_S
from workbench.core import background
from workbench.engine.frameworks.mpi.process_manager import Manager, World


def words(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split())


def test_answers_are_those_of_pmi() -> None:
    world = World(2)
    assert (
        world.answer(words("cmd=init pmi_version=1"))[0] == "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1"
    )
    assert world.answer(words("cmd=get key=PMI_process_mapping"))[0].endswith("value=(vector,(0,1,2))")
    assert world.answer(words("cmd=get key=card-0")) == ("cmd=get_result rc=1", False)
    assert world.answer(words("cmd=put key=card-0 value=00ff")) == ("cmd=put_result rc=0", False)
    assert world.answer(words("cmd=get key=card-0"))[0] == "cmd=get_result rc=0 value=00ff"
    for _ in range(2):
        assert world.answer(words("cmd=barrier_in")) == ("", False), "the other rank is waited for"
        assert world.answer(words("cmd=barrier_in")) == ("cmd=barrier_out rc=0", True)
    assert world.answer(words("cmd=spawn"))[0] == "cmd=spawn_result rc=-1 msg=unknown"


class Meeting:
    """A manager of two ranks in a thread, and its connections."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(4)
        self.first, theirs = socket.socketpair()
        manager = Manager(listener, theirs, 2)
        self.thread = background.thread(manager.run, name="manager", failed=lambda error: None)
        self.thread.start()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(WAIT_S)
        connection.connect(self.path)
        return connection


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    found = Meeting(tmp_path / "meeting.sock")
    yield found
    found.first.close()
    found.thread.join(WAIT_S)
    assert not found.thread.is_alive(), "it ends with the last connection"


def test_ranks_meet_and_nobody_comes_later(meeting: Meeting) -> None:
    with meeting.connect() as late, meeting.connect() as other:
        other.sendall(b"hel")
        meeting.first.sendall(b"hello 0 10\n")
        other.sendall(b"lo 1 12\n")
        assert [each.recv(100) for each in (meeting.first, other)] == [b"pids 10 12\n"] * 2
        with pytest.raises(ConnectionError):
            meeting.connect()
        late.sendall(b"hello 1 13\n")
        assert late.recv(100) == b""
        other.sendall(b"cmd=put key=a value=1\ncmd=barrier_in\n")
        assert other.recv(100) == b"cmd=put_result rc=0\n"
        meeting.first.sendall(b"cmd=barrier_in\n")
        assert [each.recv(100) for each in (meeting.first, other)] == [b"cmd=barrier_out rc=0\n"] * 2

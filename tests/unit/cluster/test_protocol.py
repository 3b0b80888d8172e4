"""Messages are encoded and decoded without loss; an invalid line is refused with a reason."""

import json

import pytest

from workbench.cluster.base import protocol as p

SPEC = p.RankSpec(rank=1, device="0", cores=[2, 3], environment={"RANK": "1"}, connection='{"key": "x"}')


@pytest.mark.parametrize(
    "message",
    [
        p.StartRanks(id=3, ranks=[SPEC]),
        p.StartController(id=1, profile_dir="/x", arguments=["--a=b"]),
        p.SignalRanks(id=2, ranks=[0, 1], signum=2),
        p.RankExited(rank=0, pid=7, status=-9, reason="killed", tail="line\nünïcode"),
        p.Reply(id=9, error="no\nway"),
        SPEC,
    ],
    ids=lambda message: type(message).__name__,
)
def test_round_trip(message):
    line = p.encode(message)
    assert line.count(b"\n") == 1
    assert p.decode(line) == message


def test_a_stream_is_split_into_messages_wherever_it_breaks():
    stream = b"".join(p.encode(p.Reply(id=number)) for number in range(5))
    buffer, found = p.LineBuffer(), []
    for start in range(0, len(stream), 7):
        found += buffer.feed(stream[start : start + 7])
    assert [message.id for message in found] == list(range(5))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"hello\n", "not a line of JSON"),
        (json.dumps({"v": 2, "type": "Reply", "id": 1}).encode(), "not a message of protocol version 1"),
        (json.dumps({"v": 1, "type": "Explode"}).encode(), "unknown message type"),
        (json.dumps({"v": 1, "type": "Reply", "id": 1, "more": 2}).encode(), "wrong fields for message Reply"),
        (b"[]", "not a message of protocol version 1"),
    ],
)
def test_an_invalid_line_is_refused(line, complaint):
    with pytest.raises(p.ProtocolError, match=complaint):
        p.decode(line)

"""Calls to ranks, some of which have ended."""

from __future__ import annotations

import socket
from pathlib import Path

from workbench.cluster.base.calls import call_in_ranks
from workbench.cluster.base.protocol import CallInRanks, decode


def _listening(directory: Path, rank: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(directory / f"call-{rank:05d}"))
    return listener


def test_a_rank_that_has_ended_needs_no_call_and_one_that_never_listened_is_named(tmp_path: Path) -> None:
    with _listening(tmp_path, 0) as living:
        _listening(tmp_path, 1).close()  # as when its process was killed
        request = CallInRanks(ranks=[0, 1], function="os:getcwd", arguments={})
        assert call_in_ranks(tmp_path, request) == ""
        assert decode(living.recv(1 << 16)) == request
        for _ in range(100):  # its thread cannot run: it answers those that wait there
            assert call_in_ranks(tmp_path, request) == ""
        missing = CallInRanks(ranks=[0, 2], function="os:getcwd", arguments={})
        assert call_in_ranks(tmp_path, missing) == "rank 2 cannot be told: No such file or directory"

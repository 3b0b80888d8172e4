"""Settings of the environment with which ranks cannot meet are named before they try."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch.distributed as dist

from workbench.engine.process_group import joined
from workbench.errors import ConfigError


def test_an_interface_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,wire9")
    with (
        pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME names wire9.*it has .*lo"),
        joined(0, 1, tmp_path, backend="gloo"),
    ):
        pass


def test_an_interface_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,ifb7")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "ifb7")])
    message = r"names ifb7, which has no address.*\(of lo\)"
    with pytest.raises(ConfigError, match=message), joined(0, 1, tmp_path, backend="gloo"):
        pass
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with joined(0, 1, tmp_path, backend="gloo"):
        assert dist.is_initialized()


def test_a_debug_level_that_kills_ranks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    level = dist.get_debug_level()
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    try:
        with pytest.raises(ConfigError, match="TORCH_DISTRIBUTED_DEBUG=DETAIL"), joined(0, 1, tmp_path, backend="gloo"):
            pass
    finally:
        dist.set_debug_level(level)

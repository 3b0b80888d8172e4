"""The end of a kernel that shows panels while ranks train: it ends by itself, and nothing of it is left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client import KernelManager

from tests.cluster.conftest import descendants, still_there
from tests.waiting import WAIT_S, until

SHOW = """
import threading
%load_ext workbench
run = %dist_train --recipe stdlib-llama -n 2 --steps 100000 --batch-size 8 --eval-every 0 --name outlived
%dist_watch
%dist_runs
"""
LIVE = """
import time
while run.last_step < 2:
    run.raise_if_failed()
    time.sleep(0.05)
threads = {thread.name.split("-")[0]: thread.daemon for thread in threading.enumerate()}
assert {"panel", "runs"} <= set(threads) and threads["panel"] and threads["runs"], threads
"""


def execute(client: Any, source: str) -> None:
    """Run a cell and wait for it; an error of its is one here."""
    reply = client.execute_interactive(source, timeout=WAIT_S, output_hook=lambda _message: None)
    assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", []))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files that no other test uses; its path is short, as sockets lie there."""
    with tempfile.TemporaryDirectory(prefix="wb-") as path:
        yield Path(path)


def test_a_kernel_that_is_shut_down_leaves_nothing_behind(tmp_path: Path, temporary: Path) -> None:
    manager = KernelManager(kernel_name="python3")
    own = {"WORKBENCH_HOME": str(tmp_path / "runs"), "TMPDIR": str(temporary)}
    manager.start_kernel(cwd=str(tmp_path), env={**os.environ, **own})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(WAIT_S)
        execute(client, SHOW)
        execute(client, LIVE)
        kernel = manager.provisioner.process
        processes = [psutil.Process(kernel.pid), *descendants(kernel.pid)]
        assert list(temporary.glob("workbench-*")) != []
        assert len(processes) >= 6  # the kernel, its rank server, controller, warm process, two ranks
        client.shutdown()
        until(lambda: kernel.poll() is not None, "nobody kills it: it has to end by itself")
        assert kernel.poll() == 0
        assert not still_there(processes)
        assert list(temporary.glob("workbench-*")) == []
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

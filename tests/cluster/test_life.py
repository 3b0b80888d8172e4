"""No process, file or thread of a session survives its owner, whichever process is killed. Controllers that are killed:
``tests/training/faults``."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import cycles
from tests.cluster.conftest import LIGHT, descendants, directories, keep_threads, still_there
from tests.waiting import until
from workbench.cluster import client, spare
from workbench.cluster.base import protocol as p
from workbench.cluster.base.ports import reserve
from workbench.cluster.session import Session
from workbench.errors import ClusterError, RankDiedError

#: of what ``cycles`` measures, what is not held by a session
GROW = ("resident_mib", "shared_memory")
OWNER = f"""
import os, sys, time
from workbench.cluster.session import Session
session = Session.up(2, preload={LIGHT!r})
session.execute("import subprocess; child = subprocess.Popen(['sleep', '600'])")
print(session._server.directory, flush=True)
time.sleep(600)
"""


def test_the_warm_process_forks_ranks_and_down_ends_them(fresh):
    server = spare.start_spare(preload=LIGHT)
    server.ensure_controller().result(300)
    until(lambda: any(each.state == "warm" for each in server.warmth.values()))
    warm = {each.pid for each in psutil.Process(server.pid).children()}
    session = fresh(4)
    assert session.server_pid == server.pid
    assert {psutil.Process(pid).ppid() for pid in session.pids.values()} <= warm, "forked by the warm process"
    processes = descendants()
    session.down()
    assert not still_there(processes)


def test_start_spare_does_not_wait_for_the_warm_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_TEST_GATE", str(tmp_path / "gate"))
    server = spare.start_spare(preload="tests.cluster.preloads:gated")
    server.ensure_controller()
    assert not any(each.state == "warm" for each in server.warmth.values()), "it waits for the file"
    (tmp_path / "gate").touch()
    until(lambda: any(each.state == "warm" for each in server.warmth.values()))
    spare.close_spare()


def test_no_process_survives_a_killed_owner():
    before = directories()
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    directory = Path(owner.stdout.readline().strip())
    processes = descendants(owner.pid)
    assert len(processes) >= 7 and directory.exists()  # server, controller, warm process, 2 ranks, their children
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert not still_there(processes)
    assert not directory.exists() and directories() <= before


def test_no_process_survives_a_killed_server(fresh):
    session = fresh(2)
    session.execute("import subprocess; child = subprocess.Popen(['sleep', '600'])")
    directory, processes = session._server.directory, descendants()
    submission = session.submit("import time; time.sleep(600)")
    os.kill(session.server_pid, signal.SIGKILL)
    with pytest.raises(RankDiedError, match="the rank server ended with exit code -9"):
        session.wait(submission, 300)
    assert not still_there(processes)
    session.down()
    assert not directory.exists()
    assert fresh(2).execute("1").ok


def test_killing_the_warm_process_ends_its_ranks_and_is_reported(fresh):
    session = fresh(2)
    os.kill(psutil.Process(session.pids[0]).ppid(), signal.SIGKILL)
    with pytest.raises(RankDiedError):
        session.execute("import time; time.sleep(600)")
    until(lambda: set(session.dead) == {0, 1})


def test_the_server_is_reused_for_fewer_ranks(fresh):
    """More ranks are added to those that are up: ``tests/training/test_stuck_cells.py``."""
    first = fresh(4)
    first.execute("kept = 1")
    pids = set(first.pids.values())
    second = fresh(2)
    assert second.server_pid == first.server_pid and second.n == 2 and not pids & set(second.pids.values())
    assert [each.result for each in second.execute("'kept' in dir()").outputs.values()] == ["False"] * 2
    with pytest.raises(ClusterError, match="this session has ended"):
        first.execute("1")
    os.kill(second.pids[1], signal.SIGKILL)
    third = fresh(1)
    assert third.server_pid == first.server_pid and third.execute("1").ranks == (0,)


def test_a_port_in_use_is_an_error_before_ranks_start(fresh, request):
    kept = reserve("127.0.0.1")  # nobody else on this machine is given the port while the test runs
    request.addfinalizer(kept.close)
    port = kept.getsockname()[1]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ClusterError, match=f"--master-port {port} .*Address already in use.*process {os.getpid()}"):
            fresh(2, master_port=port)
    assert not descendants()
    session = fresh(2, master_port=port)
    assert session.execute("import os; os.environ['MASTER_PORT']")[1].result == f"'{port}'"
    listen = f"import socket; listener = socket.create_server(('127.0.0.1', {port})); listener.getsockname()[1]"
    assert session.execute(listen, ranks=[0])[0].result == str(port)
    assert fresh(1, master_port=port).execute(listen)[0].result == str(port), "new ranks take over the port of the old"


def test_a_rank_that_dies_during_the_start_is_reported_with_its_output(fresh):
    with pytest.raises(RankDiedError, match=r"(?s)rank 1 ended.*exit code 3.*rank one has no luck"):
        fresh(2, preload="tests.cluster.preloads:deadly")
    assert Session.current() is None and not still_there(descendants())


@pytest.mark.parametrize(
    ("preload", "words"),
    [
        ("tests.cluster.preloads:broken", "RuntimeError: no such framework"),
        ("no_such_module:load", "No module named 'no_such_module'"),
    ],
)
def test_a_failing_preload_is_an_error(fresh, preload, words):
    with pytest.raises(ClusterError, match=f"preload function '{preload}' failed: .*{words}"):
        fresh(2, preload=preload)
    assert not still_there(descendants())


def test_each_rank_on_a_gpu_starts_from_a_warm_process_of_that_gpu():
    """The GPU way on a machine without one: the device list is a fake, CUDA_VISIBLE_DEVICES is real."""
    server = client.RankServer(preload=LIGHT, devices=["7", "8"])
    events = []
    server.on_event(events.append)
    try:
        server.ensure_controller().result(300)
        until(lambda: len({each.device for each in server.warmth.values() if each.state == "warm"}) == 2)
        spares = {each.pid for each in psutil.Process(server.pid).children()}
        specs = [
            p.RankSpec(rank=rank, device=device, profile_dir=str(server.profile_dir), connection="{}")
            for rank, device in enumerate(["7", "8", "7"])  # more ranks than devices: the third is started cold
        ]
        server.start_ranks(specs).result(300)
        started = {event.rank: event.pid for event in events if isinstance(event, p.RankStarted)}
        assert {started[0], started[1]} <= spares and started[2] not in spares
        # "{}" is no connection: they give up
        until(lambda: sum(isinstance(event, p.RankExited) for event in events) == 3)
        replaced = {each.pid for each in psutil.Process(server.pid).children()}
        assert len(replaced - {started[0], started[1], started[2]}) >= 3  # controller and fresh spares
    finally:
        server.close()


def test_ipyparallel_cluster_without_the_magics(tmp_path, monkeypatch):
    """``ipp.Cluster(engines="workbench")``, without our magics."""
    import ipyparallel
    from traitlets.config import Config

    config = Config()
    config.WorkbenchEngineSetLauncher.preload = LIGHT
    options = {
        "engines": "workbench",
        "controller": "workbench",
        "n": 2,
        "profile_dir": str(tmp_path),
        "config": config,
    }
    cluster = ipyparallel.Cluster(**options)
    view_client = cluster.start_and_connect_sync()
    try:
        view = view_client[:]
        assert view.apply_sync(lambda: __import__("os").environ["RANK"]) == ["0", "1"]
        task = view.apply_async(lambda: __import__("time").sleep(600))
        until(lambda: all(view_client.queue_status()[rank]["queue"] for rank in (0, 1)), "the controller knows of it")
        os.kill(psutil.Process(cluster.engine_set.server.pid).children(recursive=True)[-1].pid, signal.SIGKILL)
        with pytest.raises(ipyparallel.error.RemoteError, match="died while running"):
            task.get(timeout=300, return_when="FIRST_EXCEPTION")
    finally:
        processes = descendants()
        cluster.stop_cluster_sync()
        view_client.close()
        keep_threads()
    assert not still_there(processes)


def test_starts_and_ends_leave_nothing_that_grows(fresh):
    """``tests/benchmarks/cycles.py`` does the same 200 times."""
    cycles.cycle()
    before = cycles.Held.now(Path(tempfile.gettempdir()))
    for _ in range(2):
        cycles.cycle()

    def grown() -> dict[str, int]:
        """What there is more of than before; what a session has closed may take a moment to go."""
        after = cycles.Held.now(Path(tempfile.gettempdir()))
        # memory is the allocator's, and /dev/shm is the machine's
        more = {name: value - getattr(before, name) for name, value in asdict(after).items()}
        return {name: value for name, value in more.items() if value > 0 and name not in GROW}

    until(lambda: not grown(), "what a session held is gone")

"""A reserved port cannot be taken by another process before its user listens on it."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from workbench.cluster.base.ports import reserve
from workbench.cluster.hosts.machine import reserve_master_port
from workbench.errors import ClusterError


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_only_zeromq_can_listen_on_a_reserved_port(address: str):
    with reserve() as reserved:
        port = reserved.getsockname()[1]
        with socket.socket() as intruder, pytest.raises(OSError, match="Address already in use"):
            intruder.bind((address, port))
        with zmq.Context() as context, context.socket(zmq.PUB) as owner:
            owner.bind(f"tcp://127.0.0.1:{port}")
            with pytest.raises(OSError, match="Address already in use"):
                reserve(address, port)
    with socket.socket() as next_one:
        next_one.bind((address, port))


def test_a_reserved_port_is_never_chosen_as_a_free_port():
    reserved = [reserve() for _ in range(200)]
    others = [socket.socket() for _ in range(400)]
    try:
        for other in others:
            other.bind(("127.0.0.1", 0))
        assert not {each.getsockname()[1] for each in reserved} & {each.getsockname()[1] for each in others}
    finally:
        for each in (*reserved, *others):
            each.close()


def test_pytorch_can_listen_on_a_reserved_master_port():
    from torch.distributed import TCPStore

    with reserve_master_port("127.0.0.1", None) as reserved:
        port = reserved.getsockname()[1]
        with socket.socket() as intruder, pytest.raises(OSError, match="Address already in use"):
            intruder.bind(("127.0.0.1", port))
        store = TCPStore("127.0.0.1", port, 1, is_master=True)
        store.set("key", "value")
        assert store.get("key") == b"value"
        with pytest.raises(ClusterError, match=f"--master-port {port} on 127.0.0.1 cannot be used"):
            reserve_master_port("127.0.0.1", port)


_CONTROLLER = """
import json, os, socket, sys, threading
from zmq.devices import ThreadMonitoredQueue
from workbench.cluster.base.protocol import StartController
from workbench.cluster.server.controller import run_controller

outcomes, setup = [], ThreadMonitoredQueue._setup_sockets

def steal_first(queue):
    for address in (*queue._in_binds, *queue._out_binds):
        try:
            intruder = socket.socket()
            intruder.bind(("127.0.0.1", int(address.rpartition(":")[2])))
            outcomes.append("stolen")
        except OSError as error:
            outcomes.append(error.strerror)
    if len(outcomes) == 6:  # both sides of iopub, mux and control
        print(json.dumps(outcomes), flush=True)
        os._exit(0)
    return setup(queue)

ThreadMonitoredQueue._setup_sockets = steal_first
run_controller(StartController(id=1, profile_dir=sys.argv[1]), os.open(os.devnull, os.O_WRONLY))
"""


def test_no_process_can_take_a_port_of_the_controller_before_it_is_bound(tmp_path: Path):
    command = [sys.executable, "-c", _CONTROLLER, str(tmp_path)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ended.stdout, ended.stderr
    assert json.loads(ended.stdout) == ["Address already in use"] * 6

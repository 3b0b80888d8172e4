"""Faults of the host before ranks start: broken GPUs, no temporary directory; Ctrl-C as a run ends."""

import tempfile
from types import SimpleNamespace

import pytest
from IPython.core.events import EventManager

import magics
from magics.train import _wait
from workbench.cluster import client, faults
from workbench.cluster.hosts import machine
from workbench.cluster.launcher import WorkbenchEngineSetLauncher
from workbench.errors import ClusterError, RunError


class NvmlError(Exception):
    pass


class Nvml:
    """Two GPUs, the first of which fell off the bus."""

    NVMLError = NvmlError

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        if index == 0:
            raise NvmlError("GPU is lost")
        return index

    def nvmlDeviceGetName(self, handle):
        return b"H100"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        raise NvmlError("not supported")


def test_a_gpu_with_an_nvml_error_is_omitted(monkeypatch):
    monkeypatch.setattr(machine, "_nvml", Nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible_device_ids() == ["1"]


def test_a_driver_error_means_no_gpus(monkeypatch):
    broken = Nvml()
    monkeypatch.setattr(broken, "nvmlDeviceGetCount", lambda: broken.nvmlDeviceGetHandleByIndex(0), raising=False)
    monkeypatch.setattr(machine, "_nvml", lambda: broken)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible_device_ids() == []


class Shell:
    config: dict = {}
    registered: tuple = ()
    events = EventManager(None, {"post_run_cell": None})
    Completer = SimpleNamespace(custom_matchers=[])

    def register_magics(self, *kinds):
        self.registered = kinds

    def set_hook(self, *names, **patterns):
        pass


def test_the_extension_loads_without_a_temporary_directory(monkeypatch, capsys):
    def refuse(**_):
        raise PermissionError(13, "Permission denied", "/nowhere")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ClusterError, match=r"Permission denied.*set TMPDIR"):
        client.RankServer()
    shell = Shell()
    magics.load(shell)
    assert shell.registered and "set TMPDIR" in capsys.readouterr().err


@pytest.mark.parametrize("visible", [None, "1"])
def test_cuda_numbers_gpus_in_pci_bus_order(monkeypatch, visible):
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert client._environment()["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_an_engine_set_signals_its_own_ranks_after_another_set_has_ended():
    sent = []
    server = SimpleNamespace(signal=lambda ranks, number: sent.append(list(ranks)) or SimpleNamespace(result=float))
    launcher = WorkbenchEngineSetLauncher()
    launcher.server, launcher.n, launcher._first_rank = server, 2, 4
    launcher.signal(2)
    assert sent == [[4, 5]]


def test_ranks_that_are_said_to_be_stopped_or_killed_are(monkeypatch):
    """A busy machine stops or ends a process when that gets a core."""
    looks = iter([False, False, True])
    monkeypatch.setattr(faults, "is_stopped", lambda pid: next(looks))
    session = SimpleNamespace(dead={}, pids={1: 7}, signal=lambda number, ranks: None)
    assert faults.fault(session, "stop", [1]).startswith("rank 1 was stopped")
    assert next(looks, "all looked") == "all looked"
    ends = iter([{}, {}, {1: "killed"}])

    class Session:
        pids = {1: 7}

        def signal(self, number, ranks):
            pass

        @property
        def dead(self):
            return next(ends)

    assert faults.fault(Session(), "kill", [1]).startswith("rank 1 was killed")
    assert next(ends, "all looked") == "all looked"


class EndsAtOnce:
    """A run that ends at the very moment of Ctrl-C."""

    looked = 0

    def ended(self):
        self.looked += 1
        if self.looked == 1:
            raise KeyboardInterrupt
        return True

    def stop(self):
        raise RunError("run 'x' is finished: there is nothing to stop")

    def raise_if_failed(self):
        pass


def test_ctrl_c_when_a_run_has_just_ended_is_no_error():
    run = EndsAtOnce()
    _wait(run, shown=False, lines=False)
    assert run.looked > 1, "the interrupt came, and the run's end was seen after it"


def test_ctrl_c_in_the_terminal_when_a_run_has_just_ended(monkeypatch, capsys):
    from workbench.cli.commands import train
    from workbench.terminal import follow

    calls = []

    def interrupted(*_args, **_options):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(follow, "follow", interrupted)
    run = EndsAtOnce()
    run.path, run.status = "runs/x", "finished"
    assert train._until_ended(run, 0) == train.INTERRUPTED and len(calls) == 2

"""Which rank gets which device and cores."""

import pytest

from workbench.cluster.hosts.placement import (
    Device,
    Host,
    choose_devices,
    default_ranks,
    parse_ranks,
    place,
    rank_environment,
    visible_devices,
)
from workbench.errors import ConfigError

GPUS = tuple(Device(id=str(index), name="H100", memory_bytes=80 << 30) for index in range(4))


def host(cores=8, devices=(), limit=None):
    return Host(cores=tuple(range(cores)), physical_cores=cores, cpu_limit=limit, devices=devices)


def test_cores_are_shared_without_overlap():
    placement = place(3, host(8))
    cores = [binding.cores for binding in placement.bindings]
    assert sorted(core for share in cores for core in share) == list(range(8))
    assert [binding.threads for binding in placement.bindings] == [2, 3, 3]
    assert not placement.warnings


def test_more_ranks_than_cores_warns_and_does_not_pin():
    placement = place(4, host(2))
    assert [binding.cores for binding in placement.bindings] == [()] * 4
    assert [binding.threads for binding in placement.bindings] == [1] * 4
    assert "4 ranks on 2 cores" in placement.warnings[0] and "-n 2" in placement.warnings[0]


def test_a_cgroup_limit_reduces_the_usable_cores():
    placement = place(4, host(64, limit=8.0))
    assert {binding.cores for binding in placement.bindings} == {()}
    assert {binding.threads for binding in placement.bindings} == {2}


def test_each_rank_gets_one_device_and_cpu_ranks_get_none():
    placement = place(4, host(8, GPUS))
    assert [binding.device for binding in placement.bindings] == ["0", "1", "2", "3"]
    assert place(2, host(8, GPUS), devices=()).bindings[0].device == "cpu"


def test_more_ranks_than_devices_are_refused_unless_they_run_on_cpu_cores():
    with pytest.raises(
        ConfigError, match=r"6 ranks, but 4 GPUs are available \(0, 1, 2, 3\).*pass -n 4.*cpu"
    ) as caught:
        place(6, host(8, GPUS))
    assert caught.value.field == "--nproc-per-node"
    with pytest.raises(ConfigError, match="2 ranks, but 1 GPU is"):
        place(2, host(8, GPUS), devices=GPUS[2:3])
    assert {binding.device for binding in place(6, host(8, GPUS), devices=()).bindings} == {"cpu"}


def test_a_device_in_use_gives_a_warning_that_names_the_rank():
    used = (*GPUS[:1], Device(id="1", name="H100", used_by=(77,)))
    (said,) = place(2, host(8, used)).warnings
    assert (
        said
        == "device 1 (H100) is also used by process 77: rank 1 shares the memory and compute time of the device with it"
    )
    assert place(1, host(8, used)).warnings == ()


@pytest.mark.parametrize(
    ("setting", "ids"),
    [
        (None, ["0", "1", "2", "3"]),
        ("", []),
        ("2,0", ["2", "0"]),
        ("1,9,2", ["1"]),
        ("GPU-abc", ["GPU-abc"]),
        ("-1", []),
        ("0,,1", ["0"]),
        (" 3 , MIG-x ", ["3", "MIG-x"]),
    ],
)
def test_cuda_visible_devices_of_the_user_is_respected(setting, ids):
    assert [device.id for device in visible_devices(setting, GPUS)] == ids


def test_an_unknown_device_is_named_in_the_error():
    with pytest.raises(ConfigError, match="unknown device 7: the visible devices are 0, 1, 2, 3"):
        choose_devices(host(2, GPUS), ["7"])
    assert [device.id for device in choose_devices(host(2, GPUS), ["3", "1"])] == ["3", "1"]
    assert choose_devices(host(2, GPUS), "cpu") == ()


@pytest.mark.parametrize(
    ("cores", "devices", "n"), [(1, (), 2), (2, (), 2), (3, (), 3), (64, (), 4), (64, GPUS[:1], 1)]
)
def test_default_number_of_ranks(cores, devices, n):
    assert default_ranks(host(cores, devices)) == n


def test_environment_has_the_variables_of_torchrun():
    second = place(2, host(4)).bindings[1]
    variables = rank_environment(second, world_size=2, master_addr="127.0.0.1", master_port=1234)
    assert variables["RANK"] == variables["LOCAL_RANK"] == "1"
    assert variables["WORLD_SIZE"] == variables["LOCAL_WORLD_SIZE"] == "2"
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("127.0.0.1", "1234")
    assert variables["OMP_NUM_THREADS"] == "2" and variables["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("text", "ranks"), [("all", [0, 1, 2, 3]), ("0,2", [0, 2]), ("1-3", [1, 2, 3]), ("3, 0-1", [0, 1, 3])]
)
def test_parse_ranks(text, ranks):
    assert parse_ranks(text, 4) == ranks


@pytest.mark.parametrize("text", ["", "a", "2-1", "1-", "-1", "1:3"])
def test_parse_ranks_refuses_text_that_is_not_a_list_of_ranks(text):
    with pytest.raises(ConfigError, match="is not a list of ranks"):
        parse_ranks(text, 4)


def test_parse_ranks_refuses_ranks_that_are_not_up():
    with pytest.raises(ConfigError, match="ranks 4-5 in -t '3-5', but 4 ranks are up"):
        parse_ranks("3-5", 4)


def test_zero_ranks_are_refused():
    with pytest.raises(ConfigError, match="-n 0"):
        place(0, host())

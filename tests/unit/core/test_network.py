"""What ``--network`` says, and how long collectives take on one."""

from __future__ import annotations

import pytest

from workbench.core import network
from workbench.core.config import TrainSpec
from workbench.core.plans.requirements import check_capabilities
from workbench.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("100Mbit,20ms", "100Mbit,20ms"),
        ("1000Mbit", "1Gbit,0us"),
        ("0.5Gbit, 1500us", "500Mbit,1.5ms"),
        ("wan-100m", "100Mbit,20ms"),
        ("home,5ms,straggler=rank1:2x,straggler=rank0:1.5x", "20Mbit,5ms,straggler=rank1:2x,straggler=rank0:1.5x"),
    ],
)
def test_words_are_read_and_shown(text, shown):
    assert network.read(text).text == shown == network.normal(shown)
    assert TrainSpec.from_options({"ranks": 2, "plugin": "ddp", "network": text}).network == shown


def test_presets_are_read_and_no_network_stays_none():
    for name, found in network.PRESETS.items():
        assert network.read(name) == found and network.normal(name) == found.text == network.normal(found.text)
    assert network.normal("") == TrainSpec().network == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("100", "begin with a rate, such as 100Mbit, or a preset"),
        ("0Mbit", "begin with a rate"),
        ("wan-10m", "did you mean 'wan-100m'|wan-100m"),
        ("1Gbit,5", "'5' is not understood: behind the rate stand a latency"),
        ("1Gbit,loss=1%", "loss is emulated below the process group only"),
        ("1Gbit,straggler=rank1:0.5x", "'straggler=rank1:0.5x' is not understood"),
    ],
)
def test_what_no_network_is_is_refused(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        network.read(text)
    assert caught.value.field == "--network"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"plugin": "zero1"}, "--network emulates the messages of --plugin ddp .* not those of colossal zero1"),
        ({"plugin": "ddp", "ranks": 1}, "one rank sends no messages"),
        ({"plugin": "ddp", "network": "home,straggler=rank2:2x"}, r"there is no rank \[2\], of 2 ranks"),
    ],
)
def test_plans_whose_messages_are_not_emulated_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        check_capabilities(TrainSpec.from_options({"ranks": 2, "network": "home", **options}))


def test_collectives_take_the_time_of_their_bytes_and_messages():
    found = network.read("8Mbit,10ms,straggler=rank3:2x")
    assert network.messages("all_reduce", 4, 1e6) == (6, 1.5e6)
    assert network.messages("all_gather", 4, 1e6) == (3, 0.75e6)
    assert network.messages("all_reduce", 1, 1e6) == (0, 0)
    assert found.transfer_s("all_reduce", 4, 1e6) == pytest.approx(1.5)
    assert found.wait_s("all_reduce", 4) == pytest.approx(0.06)
    assert found.slowed([0, 1]) == 1 and found.slowed([0, 3]) == 2
    assert network.in_words(99.6e6, 0.0203) == "99.6 Mbit/s, 20.3 ms"

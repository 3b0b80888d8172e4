"""Which plan comes first, and why; which could be."""

import math

import pytest

from tests.unit.planner.models import job, transformer
from tests.unit.planner.test_traffic import machine
from workbench.core.frameworks import usable
from workbench.errors import ConfigError
from workbench.planner.candidates import candidates
from workbench.planner.forecast import forecast, ordered, why_first
from workbench.planner.sizes import bytes_of

PLANS = ("ddp2", "zero1 dp2", "zero2 dp2", "tp2", "pp2")


def predicted(limit: float = math.nan, rates=None):
    model = transformer()
    return ordered([forecast(model, job(text, model), rates, limit) for text in PLANS])


def test_the_fastest_of_those_that_fit_comes_first():
    found = predicted(rates=machine())
    times = [item.time.total for item in found]
    assert times == sorted(times)
    assert why_first(found).startswith(f"{found[0].name}: of the 5 plans that fit it has the shortest estimated step")


def test_what_does_not_fit_comes_last():
    sizes = sorted(item.largest.total for item in predicted())
    found = predicted(limit=sizes[1], rates=machine())
    assert [item.fits for item in found] == [True, True, False, False, False]
    assert "that fit" in why_first(found)


def test_where_nothing_fits_the_smallest_comes_first():
    found = predicted(limit=1.0, rates=machine())
    assert found[0].largest.total == min(item.largest.total for item in found)
    assert "no plan fits into 1 B per rank" in why_first(found)


def test_without_a_calibration_memory_decides():
    found = predicted()
    assert [item.largest.total for item in found] == sorted(item.largest.total for item in found)
    assert "Step times are not known" in why_first(found)


def test_a_pipeline_waits_for_its_stages():
    model = transformer()
    time = forecast(model, job("pp4", model), machine(), math.nan).time
    assert time.bubble == pytest.approx(3 / 4 * time.compute), "p - 1 passes of p micro-batches"


def test_reductions_hide_behind_the_backward_pass_where_they_can():
    model = transformer()
    slow = machine(flops_per_s=1e3, overlaps=True)
    assert forecast(model, job("ddp2", model), slow, math.nan).time.communication == 0
    assert forecast(model, job("ddp2", model), machine(flops_per_s=1e3), math.nan).time.communication > 0


def options_of(ranks: int, **given) -> list[tuple]:
    return [
        (each["framework"], each["plugin"], each.get("tp", 1), each.get("pp", 1))
        for each in candidates(usable(), ranks, given)
    ]


def test_every_split_that_divides_the_ranks_is_a_candidate():
    found = options_of(4, framework="colossal")
    hybrid = {(tp, pp) for _, plugin, tp, pp in found if plugin == "hybrid"}
    assert hybrid == {(1, 2), (1, 4), (2, 1), (2, 2), (4, 1)}
    assert [plugin for _, plugin, _, _ in found].count("ddp") == 1


def test_given_options_stay():
    hybrid = [("colossal", "hybrid", 2, 1), ("colossal", "hybrid", 2, 2)]
    assert options_of(4, plugin="hybrid", tp=2, framework="colossal") == hybrid
    assert options_of(4, plugin="fsdp", tp=2) == [("torch", "fsdp", 2, 1)]
    assert {plugin for _, plugin, _, _ in options_of(4, pp=2)} == {"hybrid", "zero1"}, "others take no --pp"


def test_a_given_context_parallel_size_is_that_of_each_plan():
    found = list(candidates(usable(), 4, {"cp": 2}))
    assert [(each["framework"], each["plugin"], each["cp"]) for each in found] == [("torch", "context", 2)]
    sizes = [each["cp"] for each in candidates(usable(), 4, {"framework": "torch"}) if each["plugin"] == "context"]
    assert sizes == [2, 4], "with one rank to a sequence it is ddp"


def test_plans_that_only_split_state_are_those_with_somebody_to_split_it_with():
    assert options_of(4, plugin="zero1", framework="colossal") == [
        ("colossal", "zero1", tp, pp) for tp, pp in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1))
    ]
    state = [("colossal", name, 2, 1) for name in ("zero1", "zero2")]
    assert options_of(4, tp=2, framework="colossal") == [
        ("colossal", "hybrid", 2, 1),
        ("colossal", "hybrid", 2, 2),
        *state,
    ]


def test_a_thousand_ranks_are_arithmetic():
    model = transformer(batch_size=1024)
    found = forecast(model, job("zero2 dp1024", model), machine(), math.nan)
    assert found.largest.state == sum(12 * -(-each.elements // 1024) + 4 for each in model.parameters)
    assert found.time.total > 0


@pytest.mark.parametrize(("text", "size"), [("80GiB", 80 * 2**30), ("1.5 GB", 1.5e9), ("512m", 512e6), ("1000", 1000)])
def test_sizes_are_read(text, size):
    assert bytes_of(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "much", "80XB", "0GB", "-3GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="80GiB or 24GB"):
        bytes_of(text, "--memory")


def test_an_update_calls_operators_for_each_parameter_of_a_rank():
    model = transformer()
    calls = {
        text: forecast(model, job(text, model), machine(bytes_per_s=math.inf), math.nan).time.update / 1e-5
        for text in ("ddp2", "pp2")
    }
    assert calls == pytest.approx({"ddp2": len(model.parameters), "pp2": len(model.parameters) / 2})

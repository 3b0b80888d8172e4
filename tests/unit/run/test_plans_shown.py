"""Plans as tables, sentences, HTML and figures; the errors of what was tried; who holds what."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from tests.unit.planner.models import job, transformer
from tests.unit.planner.test_traffic import machine
from workbench.core.mesh import Coordinates
from workbench.errors import ConfigError
from workbench.planner.forecast import Refused, forecast, ordered
from workbench.planner.holdings import memory
from workbench.planner.traffic import traffic
from workbench.run.planning.attempt import Attempt
from workbench.run.planning.errors import errors
from workbench.run.planning.holders import draw_holders, holders, layers_of
from workbench.run.planning.plans import plan_options
from workbench.run.planning.shown import Plans

MODEL = transformer()


def shown(*, rates=None, limit: float = math.nan, tried=None, plans=("ddp2", "zero2 dp2", "tp2", "pp2")) -> Plans:
    forecasts = ordered([forecast(MODEL, job(text, MODEL), rates, limit) for text in plans])
    return Plans(
        model=MODEL,
        ranks=2,
        machine=rates,
        limit=limit,
        forecasts=tuple(forecasts),
        refused=(Refused(name="torch fsdp", reason="not <allowed>"),),
        tried=tried or {},
        specs={},
    )


def test_the_table_has_a_row_per_plan_in_order():
    found = shown(rates=machine())
    table = found.table()
    assert list(table["plan"]) == [item.name for item in found.forecasts]
    assert list(table["step_s"]) == sorted(table["step_s"])
    assert len(found.ranks_table()) == 8
    assert set(found.traffic_table()["kind"]) == {"all_reduce", "all_gather", "reduce_scatter", "send", "recv"}


def test_a_page_escapes_what_it_shows_and_says_why():
    found = shown(rates=machine())
    page = found._repr_html_()
    assert "not &lt;allowed&gt;" in page
    assert found.why.split(":")[0] in page
    assert "<svg" in page
    assert "GFLOP/s per rank in fp32, a message takes 1 ms and 1 MB/s" in repr(found)


def test_without_a_calibration_no_time_is_shown():
    found = shown()
    assert found.table()["step_s"].isna().all()
    assert "this machine was never measured" in repr(found)
    assert len(found.figures()) == 1
    assert len(shown(rates=machine()).figures()) == 2


def test_bars_end_where_the_memory_does():
    found = shown(rates=machine(), limit=40_000)
    figure = found.figures()[0]
    rights = [max(each.data_source.data["right"]) for each in figure.renderers]
    assert max(rights) == pytest.approx(max(item.largest.total for item in found.forecasts))
    assert any(type(part).__name__ == "Span" for part in figure.center), "the limit is near, so it is drawn"
    assert found.picture().startswith(b"\x89PNG")


def tried(text: str, *, factor: float = 1.0) -> Attempt:
    plan = job(text, MODEL)
    places = [plan.plan.mesh.coordinates(rank) for rank in range(2)]
    held = [memory(MODEL, plan, here) for here in places]
    return Attempt(
        parameters=tuple(float(each.parameters) for each in held),
        state=tuple(each.state * factor for each in held),
        grown=(1e6, 1e6),
        sent_bytes=tuple(sum(item.bytes for item in traffic(MODEL, plan, here)) for here in places),
        step_s=0.5,
        by_kind={(0, "all_reduce", "dp"): 1.0},
    )


def test_what_was_measured_stands_beside_what_was_predicted():
    plan = job("zero1 dp2", MODEL)
    found = {each.what: each for each in errors(MODEL, forecast(MODEL, plan, machine(), math.nan), tried("zero1 dp2"))}
    assert found["parameters"].share == found["optimizer state"].share == found["sent per step"].share == "exact"
    assert found["step"].measured == "500 ms"
    assert found["growth while training"].share.endswith("%")


def test_a_difference_on_any_rank_is_no_exact_value():
    plan = job("pp2", MODEL)
    found = errors(MODEL, forecast(MODEL, plan, machine(), math.nan), tried("pp2", factor=2.0))
    assert found[1].share == "-50.0 %"


def test_a_plan_that_failed_says_why():
    plan = job("ddp2", MODEL)
    attempts = {plan.plan: Attempt(failed="run 'x' failed")}
    found = shown(rates=machine(), tried=attempts)
    assert [error.measured for error in found.errors()] == ["run 'x' failed"]
    assert "run 'x' failed" in repr(found)


def test_layers_of_a_stage_are_named_in_short():
    plan = job("tp2 pp2", MODEL)
    assert [layers_of(plan, stage) for stage in range(2)] == ["embed, layers 0-1", "layers 2-3, head"]
    lines = holders(MODEL, plan)
    assert lines[0] == "Who holds what: tp2 pp2"
    assert lines[1].startswith("  ranks 0-1: half of embed, layers 0-1 (")


def test_what_replicas_share_out_is_said():
    assert (
        "rank 0: the whole model, with half of the gradients and optimizer state ("
        in holders(MODEL, job("zero2 dp2", MODEL))[1]
    )
    assert holders(MODEL, job("fsdp4", MODEL))[1].startswith(
        "  rank 0: a quarter of the parameters, gradients and optimizer state of the whole model ("
    )


def test_replicas_are_drawn_up_to_a_number():
    model = transformer(batch_size=1024)
    few, many = draw_holders(model, job("tp2 pp2", model)), draw_holders(model, job("zero2 dp1024", model))
    assert few.count("rank ") >= 4
    words = re.sub("<[^>]*>", " ", few)
    assert " ".join(words.split()).count("each layer cut in 2") == 2, "tensor parallelism, in both stages"
    assert "Not drawn: 1016 more replicas, which hold as much." in many
    assert memory(model, job("zero2 dp1024", model), Coordinates(dp=0, pp=0, tp=0)).parameters > 0


def test_options_of_a_plan_make_it_again():
    plan = job("tp2 pp2", MODEL).plan
    assert plan_options(plan) == {
        "ranks": 4,
        "framework": "colossal",
        "plugin": "hybrid",
        "tp": 2,
        "pp": 2,
        "micro_batches": 2,
    }


def test_a_plan_of_the_table_shows_who_holds_what() -> None:
    found = shown()
    picture = found.holders("pp2")
    assert repr(picture).startswith("Who holds what: pp2\n") and "<svg" in picture._repr_html_()
    assert "gradients and optimizer state</text>" in found.holders("zero2 dp2")._repr_html_()
    with pytest.raises(ConfigError, match="no plan 'pp3' was predicted"):
        found.holders("pp3")


def test_a_part_of_the_memory_that_no_plan_needs_has_no_column():
    found = shown()
    assert "buffers" in found.tables()[0][1]
    without = [
        replace(item, memory=tuple(replace(each, buffers=0) for each in item.memory)) for item in found.forecasts
    ]
    assert "buffers" not in replace(found, forecasts=tuple(without)).tables()[0][1]

"""The grammar of plans: what the words mean, that every plan is read back from its words, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from workbench.core import plan_grammar
from workbench.core.config import ParallelPlan, TrainSpec, read_spec_options
from workbench.core.frameworks import usable
from workbench.errors import ConfigError
from workbench.run.resolve import merged, resolve

CELL = "model = optimizer = dataset = criterion = None\n"
EVERY_PLUGIN = [(each.name, plugin.name) for each in usable() for plugin in each.plugins]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ddp2", {"framework": "colossal", "plugin": "ddp", "ranks": 2}),
        ("torch ddp2", {"framework": "torch", "plugin": "ddp", "ranks": 2}),
        ("zero2", {"framework": "colossal", "plugin": "zero2", "ranks": 1}),
        ("zero2 dp4", {"framework": "colossal", "plugin": "zero2", "ranks": 4}),
        ("zero3 dp2", {"framework": "deepspeed", "plugin": "zero3", "ranks": 2}),
        ("tp2 pp2", {"plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 2, "ranks": 4}),
        ("pp2,mb8,dp2", {"plugin": "hybrid", "tp": 1, "pp": 2, "micro_batches": 8, "ranks": 4}),
        ("torch pp2 zero-bubble", {"framework": "torch", "plugin": "hybrid", "schedule": "zero-bubble", "ranks": 2}),
        ("zero1 tp2 dp2", {"plugin": "zero1", "tp": 2, "pp": 1, "ranks": 4}),
        ("pp2 zero1 dp2", {"plugin": "zero1", "tp": 1, "pp": 2, "micro_batches": 2, "ranks": 4}),
        ("tp2 ring", {"plugin": "hybrid", "tp": 2, "sequence_parallel": "ring", "ranks": 2}),
        ("torch ddp2 compile", {"framework": "torch", "plugin": "ddp", "compile": True, "ranks": 2}),
        ("TP2 PP2", {"plugin": "hybrid", "tp": 2, "pp": 2}),
        ("sync-batchnorm ddp2", {"plugin": "ddp", "sync_batchnorm": True, "ranks": 2}),
    ],
)
def test_words_of_a_plan(text: str, expected: dict) -> None:
    plan = ParallelPlan.parse(text)
    assert {name: getattr(plan, name) for name in expected} == expected


@st.composite
def any_plan(draw: st.DrawFn) -> ParallelPlan:
    framework, plugin = draw(st.sampled_from(EVERY_PLUGIN))
    tp, pp = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    switches = draw(st.sets(st.sampled_from(sorted(plan_grammar.SWITCHES)), max_size=1))
    try:
        return ParallelPlan(
            framework=framework,
            plugin=plugin,
            ranks=draw(st.integers(1, 8)) * tp * pp,
            tp=tp,
            pp=pp,
            micro_batches=draw(st.integers(1, 8)),
            replicate=draw(st.sampled_from((1, 2))),
            **dict(plan_grammar.SWITCHES[switch] for switch in switches),
        )
    except ConfigError:
        reject()


@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(any_plan())
def test_a_plan_is_read_back_from_its_words(plan: ParallelPlan) -> None:
    assert ParallelPlan.parse(plan.describe()) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zerro2", r"unknown word 'zerro2'.*zero2"),
        ("tq2", r"unknown word 'tq2'.*tp2"),
        ("torhc ddp2", r"unknown word 'torhc'.*torch"),
        ("tp", "tp needs a number, such as tp2"),
        ("tp2 tp4", "sets tp twice: leave out 'tp4'"),
        ("ddp2 dp4", "sets the data-parallel size twice"),
        ("ddp zero1", "sets plugin twice"),
        ("torch zero1", "--plugin zero1 belongs to another framework: add --framework colossal"),
        ("ddp2 tp2", "--tp 2 needs --plugin hybrid or zero1 or zero2, not ddp"),
        ("hybrid tp2 zero1", "sets plugin twice: leave out 'hybrid' or 'zero1'"),
        ("ep2 dp2", "ep2: expert parallelism puts the experts of a layer on different data-parallel ranks"),
        ("moe ep2", "moe is not available with colossal"),
        ("zero4", "zero4: write zero1 or zero2; ZeRO-3, which splits the weights too, is zero3"),
        ("zero0 tp2", "zero0: ZeRO-0 splits nothing"),
        ("HSDP2", "hsdp2: hybrid sharding is fsdp4 replicate2"),
        ("tp2 sp2", "sp2: sequence parallelism shares positions over the tensor-parallel ranks"),
        ("tp2 all_to_all", "all_to_all: Colossal-AI gives it ranks beside those of tp"),
        ("ring_attn tp2", "ring_attn: Colossal-AI's ring attention needs flash_attn"),
        ("ulysses2", "ulysses2: Colossal-AI gives it ranks"),
        ("zbv pp2", "write 'torch pp2 zero-bubble'"),
        ("torch 1f1b pp2", "1F1B is the schedule of a pipeline that names none"),
        ("ddp2 bf16", "pass --precision bf16"),
        ("ddp2 powersgd", "write an algorithm behind its plugin, as in ddp2:powersgd"),
        ("deepspeed pipeline", "pipeline is not available with deepspeed"),
        ("accelerate tp2", "call workbench.observe"),
        ("tp0", "--tp must be a whole number of at least 1"),
        ("", "is not a plan: write words"),
    ],
)
def test_refused_words(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelPlan.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": "tp2", "tp": 4}, "--plan 'tp2' says tp 2, and --tp says 4: leave out one of them"),
        ({"plan": "zero2", "plugin": "ddp"}, "says plugin zero2, and --plugin says ddp"),
        ({"plan": "torch ddp2", "framework": "colossal"}, "says framework torch, and --framework says colossal"),
        ({"plan": "ddp2", "ranks": 4}, "is for 2 ranks .*, and -n says 4: leave out -n"),
    ],
)
def test_flags_that_contradict_a_plan(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_grammar.expanded(options)


def resolved(options: dict, **others) -> ParallelPlan:
    return resolve(options, cell=CELL, default_ranks=8, **others).spec.plan


def test_ranks_follow_from_the_sizes_and_else_from_n() -> None:
    assert resolved({"plan": "tp2 pp2"}).ranks == 4
    assert resolved({"plan": "tp2 pp2", "ranks": 8}).mesh.dp == 2
    assert resolved({"plan": "zero2", "ranks": 4}).ranks == 4
    assert resolved({"plan": "zero2"}).ranks == 8, "as without a plan: what is there"
    assert resolved({"plan": "ddp2", "framework": "torch"}) == resolved(
        {"framework": "torch", "plugin": "ddp", "ranks": 2}
    )


def test_a_plan_replaces_the_plan_of_a_spec_file_and_of_a_run(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text("steps = 3\nplan = 'tp2 pp2'\n")
    assert read_spec_options(spec) == {"steps": 3, "plan": "tp2 pp2"}
    assert resolved({}, config=spec) == ParallelPlan.parse("tp2 pp2")
    assert resolved({"plan": "torch ddp2"}, config=spec) == ParallelPlan.parse("torch ddp2")
    spec.write_text("[plan]\nplugin = 'hybrid'\ntp = 2\nranks = 4\n")
    assert resolved({"plan": "zero2"}, config=spec) == ParallelPlan.parse("zero2 dp4")
    run = TrainSpec.from_options({"plugin": "hybrid", "tp": 2, "ranks": 4}).options()
    branch = merged({name: value for name, value in run.items() if value is not None}, {"plan": "zero1"})
    assert (branch["plugin"], branch["ranks"]) == ("zero1", 4) and "tp" not in branch

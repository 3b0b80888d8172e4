"""Controls on real ranks: when they take effect, what they change, and that they change nothing else."""

from __future__ import annotations

from typing import Any

import pytest

TRAIN = "tests.engine.steered:train"
DDP = {"plugin": "ddp"}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}
TP = {"plugin": "hybrid", "tp": 2}
ZERO = {"plugin": "zero1"}


def done(found: list[dict[str, Any]], kind: str = "control") -> list[tuple[Any, ...]]:
    """(step, name, value, old value) of events, which all ranks have alike."""
    rows = [
        [(e["step"], e["name"], e["value"], e["old"]) for e in rank["events"] if e["kind"] == kind] for rank in found
    ]
    assert all(row == rows[0] for row in rows), rows
    return rows[0]


def column(found: list[dict[str, Any]], name: str, rank: int = -1) -> list[Any]:
    return [row[("step", "loss", "lr", "grad_sq", "clip", "tokens").index(name)] for row in found[rank]["rows"]]


def test_settings_take_effect_at_one_step_on_all_ranks(pool):
    script = {
        "1": [["lr", 0.001], ["clip", 0.25]],
        "3": [["lr", "x0.5"], ["weight_decay", 0.5], ["accumulate", 2]],
        "5": [["lr", "schedule"], ["temperature", 3]],
        "6": [["accumulate", 3], ["clip", -1], ["nonsense", 1], "not json\n", '{"v": 99, "name": "stop"}\n'],
    }
    found = pool.run(2, TRAIN, model="plain", options=DDP, steps=9, script=script, knobs={"temperature": 1.0})
    plain = [3e-3 * (1 - 0.5 * step / 9) for step in range(9)]
    expected = [*plain[:2], 0.001, 0.001, 0.0005, 0.0005, *plain[6:]]
    assert column(found, "lr") == pytest.approx(expected, rel=1e-12)
    assert column(found, "clip") == [0.0] * 2 + [0.25] * 7
    declared, *rest = done(found)
    assert declared[:2] == (0, "declared") and declared[2]["name"] == "temperature" and declared[2]["value"] == 1.0
    assert rest == [
        (2, "lr", 0.001, pytest.approx(plain[2])),
        (2, "clip", 0.25, 0.0),
        (4, "lr", 0.0005, 0.001),
        (4, "weight_decay", 0.5, 0.01),
        (4, "accumulate", 2, 1),
        (6, "lr", pytest.approx(plain[6]), 0.0005),
        (6, "temperature", 3.0, 1.0),
    ]
    assert [(step, name) for step, name, *_ in done(found, "refused")] == [
        (7, "accumulate"),
        (7, "clip"),
        (7, "nonsense"),
    ]
    assert [(step, name) for step, name, *_ in done(found, "warning")] == [(7, "bad_command")] * 2
    assert {event["who"] for event in found[0]["events"] if event["kind"] == "control"} == {"", "test"}


@pytest.mark.parametrize("options", [ZERO, PP], ids=["zero1", "pp2"])
def test_clip_and_accumulation_are_those_of_a_run_that_began_so(pool, options):
    script = {"1": [["clip", 0.5]]}
    found = pool.run(2, TRAIN, model="llama", options=options, steps=6, script=script)
    begun = pool.run(2, TRAIN, model="llama", options={**options, "clip": 0.5}, steps=6)
    free = pool.run(2, TRAIN, model="llama", options=options, steps=6)
    losses = [column(each, "loss") for each in (found, begun, free)]
    assert losses[0][:3] == losses[2][:3], "nothing changes before it"
    # AdamW hardly minds the size of a gradient, so this says no more than that something else happened
    assert column(found, "clip") == [0, 0, 0.5, 0.5, 0.5, 0.5] and losses[0] != losses[2] and losses[0] != losses[1]


@pytest.mark.parametrize("options", [DDP, ZERO, TP, PP], ids=["ddp", "zero1", "tp2", "pp2"])
def test_a_frozen_layer_stays_as_it_is(pool, options):
    script = {"1": [["freeze", "embed_tokens"]], "3": [["unfreeze", "."]], "4": [["freeze", "."], ["freeze", "xyz"]]}
    script["2"] = [["checkpoint", None]]
    script["3"].append(["checkpoint", None])
    found = pool.run(2, "tests.engine.steered:frozen", model="llama", options=options, steps=7, script=script)
    assert [(step, name, value) for step, name, value, _ in done(found) if name != "checkpoint"] == [
        (2, "freeze", ["model.embed_tokens"]),
        (4, "unfreeze", []),
    ]
    assert [step for step, *_ in done(found, "refused")] == [5, 5]
    changed = found[0]["changed"]
    assert changed["model.embed_tokens.weight"] == [0.0, 0.0] and min(changed["lm_head.weight"]) > 0


def test_pause_longer_than_the_timeout_step_and_resume(pool):
    script = {
        "1": [["pause", None], {"after": 4.5, "command": ["step", 2]}, {"after": 5.2, "command": ["resume", None]}]
    }
    found = pool.run(2, TRAIN, model="plain", options=DDP, steps=6, script=script, collective_timeout_s=2.0)
    assert done(found, "state") == [
        (0, "running", None, None),
        (2, "paused", None, None),
        (2, "running", None, None),
        (4, "paused", None, None),
        (4, "running", None, None),
    ]
    assert done(found) == [
        (2, "pause", "paused", "running"),
        (2, "step", 2, "paused"),
        (4, "resume", "running", "paused"),
    ]
    free = pool.run(2, TRAIN, model="plain", options=DDP, steps=6)
    assert column(found, "loss") == column(free, "loss")


@pytest.mark.parametrize("by_broadcast", [False, True], ids=["one host", "several hosts"])
def test_ranks_hardly_work_while_paused(pool, by_broadcast: bool):
    script = {"1": [["pause", None], {"after": 6, "command": ["resume", None]}]}
    arguments = {"model": "plain", "options": {"plugin": "hybrid"}, "steps": 3, "script": script}
    found = pool.run(2, TRAIN, by_broadcast=by_broadcast, **arguments)
    shares = [rank["paused_cpu"] for rank in found]
    print("share of a core while paused:", shares)
    assert max(shares) < 0.01


def test_stop_now_or_after_a_checkpoint_and_what_comes_too_late(pool):
    found = pool.run(2, TRAIN, model="plain", options=DDP, steps=50, script={"2": [["stop", "checkpoint"]]})
    assert found[0]["outcome"] == "stopped" and column(found, "step") == [1, 2, 3]
    assert done(found, "checkpoint") == [(3, "saved", "step-000003", None)]
    found = pool.run(2, TRAIN, model="plain", options=DDP, steps=3, script={"3": [["clip", 1]]})
    assert found[0]["outcome"] == "finished"
    assert [(step, name, value["value"]) for step, name, value, _ in done(found, "refused")] == [(3, "clip", 1)]


def test_fewer_records_evaluations_and_samples(pool):
    script = {"1": [["log_every", 3], ["evaluate", None]], "3": [["sample", None]]}
    found = pool.run(2, TRAIN, model="plain", options=DDP, steps=10, script=script)
    assert column(found, "step") == [1, 2, 3, 6, 9, 10], "the last step is always there"
    own = [(e["step"], e["kind"]) for e in found[0]["events"] if e["kind"] in ("validation", "sample")]
    assert own == [(2, "validation"), (2, "sample"), (4, "sample")]

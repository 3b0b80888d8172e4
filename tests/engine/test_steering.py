"""Controls on real ranks: when they take effect, what they change, and that they change nothing else."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

from workbench.engine.agree.control import HEARTBEAT_S, POLL_S

TRAIN = "tests.engine.steered:train"
DDP = {"plugin": "ddp"}
PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 2}
STAGES = {**PP, "framework": "torch"}
TP = {"plugin": "hybrid", "tp": 2}
ZERO = {"plugin": "zero1"}
FSDP = {"framework": "torch", "plugin": "fsdp"}
DEEPSPEED = {"framework": "deepspeed", "plugin": "zero1"}
MPI, MEGATRON = [{"framework": name, "plugin": "ddp"} for name in ("mpi", "megatron")]


def done(found: list[dict[str, Any]], kind: str = "control") -> list[tuple[Any, ...]]:
    """(step, name, value, old value) of events, which all ranks have alike."""
    rows = [
        [(e["step"], e["name"], e["value"], e["old"]) for e in rank["events"] if e["kind"] == kind] for rank in found
    ]
    assert all(row == rows[0] for row in rows), rows
    return rows[0]


def column(found: list[dict[str, Any]], name: str, rank: int = -1) -> list[Any]:
    return [row[("step", "loss", "lr", "grad_sq", "clip", "tokens").index(name)] for row in found[rank]["rows"]]


def test_settings_take_effect_at_one_step_on_all_ranks(run_kept):
    script = {
        "1": [["lr", 0.001], ["clip", 0.25]],
        "3": [["lr", "x0.5"], ["weight_decay", 0.5], ["accumulate", 2]],
        "5": [["lr", "schedule"], ["temperature", 3]],
        "6": [["accumulate", 0], ["clip", -1], ["nonsense", 1], "not json\n", '{"v": 99, "name": "stop"}\n'],
    }
    found = run_kept(2, TRAIN, model="plain", options=DDP, steps=9, script=script, knobs={"temperature": 1.0})
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


#: what the plain loop changes after a step -> what is asked of the ranks, so that it takes effect after the same step
CHANGES = {
    "2": ({"clip": 0.05}, [["clip", 0.05]]),
    "5": ({"weight_decay": 20.0}, [["weight_decay", 20.0]]),
    "8": ({"frozen": "model.layers.1."}, [["freeze", "^model[.]layers[.]1[.]"]]),
    "11": ({"frozen": "-"}, [["unfreeze", "."]]),
}
BY_PIECES = {"2": ({"pieces": 2}, [["accumulate", 2]]), "6": ({"pieces": 1}, [["accumulate", 1]])}


def losses_of(found: list[dict[str, Any]]) -> list[float]:
    """The global loss of each step: the mean over the ranks that have one."""
    columns = [column(found, "loss", rank) for rank in range(len(found))]
    return [
        sum(known) / len(known)
        for step in zip(*columns, strict=True)
        if (known := [loss for loss in step if loss is not None])
    ]


@pytest.fixture(scope="module")
def edited(pool) -> Callable[..., list[float]]:
    """``edited(model, changes, shards)``: losses of the plain loop with these changes."""

    @functools.cache
    def run(model: str, steps: int, changes: str, shards: int) -> list[float]:
        asked = {"model": model, "steps": steps, "changes": json.loads(changes), "shards": shards}
        return pool.run(1, "tests.engine.plain:steered", kept_for="plain loops", **asked)[0]

    def called(model: str, steps: int, changes: dict[str, Any], shards: int = 1) -> list[float]:
        return run(model, steps, json.dumps({step: change for step, (change, _) in changes.items()}), shards)

    return called


def apart(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


#: of ``normed``, what a sample becomes depends on the piece that it is in
CASES = {
    "zero1, accumulate": ("normed", ZERO, BY_PIECES, 10),
    "ddp": ("llama", DDP, CHANGES, 14),
    "zero1": ("llama", ZERO, CHANGES, 14),
    "zero1, tp2": ("llama", ZERO | {"tp": 2}, CHANGES, 14),
    "fsdp": ("llama", FSDP, CHANGES, 14),
    "deepspeed": ("llama", DEEPSPEED, CHANGES, 14),
    "mpi": ("llama", MPI, CHANGES, 14),
    "megatron": ("llama", MEGATRON, CHANGES, 14),
    "deepspeed zero3": ("llama", DEEPSPEED | {"plugin": "zero3"}, CHANGES, 14),
    "tp2": ("llama", TP, CHANGES, 14),
    "pp2": ("llama", PP, CHANGES, 14),
}


@pytest.mark.parametrize("case", CASES)
def test_a_change_does_what_it_does_in_a_plain_loop(run_kept, edited, case):
    """Clip, weight decay, accumulation and freezing, against one process that makes the same change at that step."""
    model, options, changes, steps = CASES[case]
    script = {str(int(step) - 1): asked for step, (_, asked) in changes.items()}
    found = losses_of(run_kept(2, TRAIN, model=model, options=options, steps=steps, script=script))
    shards = 2 if model == "normed" else 1
    difference = apart(found, edited(model, steps, changes, shards))
    print(f"largest difference of the loss {difference:.1e}")
    assert difference <= 1e-5
    for step in changes:  # and each change is seen: without it the plain loop is elsewhere
        without = {other: change for other, change in changes.items() if other != step}
        assert apart(found, edited(model, steps, without, shards)) > 1e-4, step


@pytest.mark.parametrize("options", [DDP, ZERO, TP, PP, STAGES], ids=["ddp", "zero1", "tp2", "pp2", "stages2"])
def test_a_frozen_layer_stays_as_it_is(run_kept, options):
    script = {"1": [["freeze", "embed_tokens"]], "3": [["unfreeze", "."]], "4": [["freeze", "."], ["freeze", "xyz"]]}
    script["2"] = [["checkpoint", None]]
    script["3"].append(["checkpoint", None])
    found = run_kept(2, "tests.engine.steered:frozen", model="llama", options=options, steps=7, script=script)
    assert [(step, name, value) for step, name, value, _ in done(found) if name != "checkpoint"] == [
        (2, "freeze", ["model.embed_tokens"]),
        (4, "unfreeze", []),
    ]
    assert [step for step, *_ in done(found, "refused")] == [5, 5]
    changed = found[0]["changed"]
    assert changed["model.embed_tokens.weight"] == [0.0, 0.0] and min(changed["lm_head.weight"]) > 0


def test_pause_longer_than_the_timeout_step_and_resume(run_kept):
    script = {"1": [["pause", None]], "paused": [[16, ["step", 2]], [0, ["resume", None]]]}
    # no rank of a busy machine is so much later than another
    found = run_kept(2, TRAIN, model="plain", options=DDP, steps=6, script=script, collective_timeout_s=15.0)
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
    free = run_kept(2, TRAIN, model="plain", options=DDP, steps=6)
    assert column(found, "loss") == column(free, "loss")


@pytest.mark.parametrize("one_host", [True, False], ids=["one host", "several hosts"])
def test_paused_ranks_look_and_agree_a_few_times_a_second(run_kept, one_host: bool):
    """What this costs of a core: ``tests/benchmarks/agreement.py``."""
    script = {"1": [["pause", None]], "paused": [[2, ["resume", None]]]}
    arguments = {"model": "plain", "options": {"plugin": "hybrid"}, "steps": 3, "script": script}
    first, second = (rank["pause"] for rank in run_kept(2, TRAIN, one_host=one_host, **arguments))
    for pause in (first, second):
        assert 2 <= pause["agreements"] <= pause["seconds"] / HEARTBEAT_S + 3
        assert all(slept >= POLL_S for slept in pause["sleeps"])
        assert len(pause["sleeps"]) <= pause["seconds"] / POLL_S + 1
    assert 0 < first["looks"] <= len(first["sleeps"]) + 2 * first["agreements"] + 1  # that of the next step
    assert second["looks"] == 0, "rank 0 alone looks at the control file"
    assert bool(second["sleeps"]) is one_host, "between hosts a rank waits for the message of rank 0"


def test_stop_now_or_after_a_checkpoint_and_what_comes_too_late(run_kept):
    found = run_kept(2, TRAIN, model="plain", options=DDP, steps=50, script={"2": [["stop", "checkpoint"]]})
    assert found[0]["outcome"] == "stopped" and column(found, "step") == [1, 2, 3]
    assert done(found[:1], "checkpoint") == [(3, "saved", "step-000003", None)]
    found = run_kept(2, TRAIN, model="plain", options=DDP, steps=3, script={"3": [["clip", 1]]})
    assert found[0]["outcome"] == "finished"
    assert [(step, name, value["value"]) for step, name, value, _ in done(found, "refused")] == [(3, "clip", 1)]


def test_fewer_records_evaluations_and_samples(run_kept):
    script = {"1": [["log_every", 3], ["evaluate", None]], "3": [["sample", None]]}
    found = run_kept(2, TRAIN, model="plain", options=DDP, steps=10, script=script)
    assert column(found, "step") == [1, 2, 3, 6, 9, 10], "the last step is always there"
    own = [(e["step"], e["kind"]) for e in found[0]["events"] if e["kind"] in ("validation", "sample")]
    assert own == [(2, "validation"), (2, "sample"), (4, "sample")]

"""Checkpoints on real ranks: going back and going on give the same numbers, bit by bit, and damage is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.test_steering import DDP, PP, TP, TRAIN, ZERO, column, done

TORCH = {"framework": "torch", "plugin": "ddp"}
STAGES = {**PP, "framework": "torch"}
FSDP = {"framework": "torch", "plugin": "fsdp"}
CONTEXT = {"framework": "torch", "plugin": "context", "cp": 2}
GEMINI = {"plugin": "gemini", "precision": "bf16"}
DEEPSPEED = {"framework": "deepspeed", "plugin": "zero1"}
MPI, MEGATRON = [{"framework": name, "plugin": "ddp"} for name in ("mpi", "megatron")]
#: every weight is split; by default DeepSpeed leaves small ones whole
SPLIT = '{"zero_optimization": {"stage3_param_persistence_threshold": 0}}'
DEEPSPEED3 = {"framework": "deepspeed", "plugin": "zero3", "ds_config": SPLIT}
SAVED = {"1": [["checkpoint", None]]}
PLANS = {
    "ddp-noisy": ("noise", DDP),
    "ddp-fp16": ("plain", DDP | {"precision": "fp16"}),
    "torch": ("gpt2-drop", TORCH | {"clip": 0.5}),
    "torch-noisy": ("noise", TORCH),
    "torch-fp16": ("plain", TORCH | {"precision": "fp16"}),
    "torch-topk": ("gpt2-drop", TORCH | {"algorithm": "topk:0.05+ef"}),
    "torch-diloco": ("gpt2-drop", TORCH | {"algorithm": "diloco:4", "clip": 0.5}),
    "torch-post-local": ("noisy", TORCH | {"algorithm": "post-local-sgd:3:after=4"}),
    "ddp-streaming": ("plain", DDP | {"algorithm": "streaming-diloco:5:fragments=2", "accumulate": 2}),
    "ddp-powersgd": ("plain", DDP | {"algorithm": "powersgd:1", "precision": "fp16"}),
    "fsdp": ("gpt2-drop", FSDP | {"clip": 0.5}),
    "fsdp-fp16": ("plain", FSDP | {"precision": "fp16"}),
    "context": ("gpt2-drop", CONTEXT | {"clip": 0.5}),
    "zero1": ("gpt2-drop", ZERO | {"clip": 0.5}),
    "zero1-noisy": ("noisy", ZERO),
    "zero1-bf16": ("llama", ZERO | {"precision": "bf16"}),
    "zero2": ("plain", {"plugin": "zero2"}),
    "deepspeed": ("gpt2-drop", DEEPSPEED | {"clip": 0.5}),
    "deepspeed-fp16": ("plain", DEEPSPEED | {"plugin": "zero2", "precision": "fp16"}),
    "megatron": ("gpt2-drop", MEGATRON | {"clip": 0.5}),
    "megatron-tp2": ("gpt2-drop", MEGATRON | {"plugin": "hybrid", "tp": 2}),
    "megatron-fp16": ("gpt2", MEGATRON | {"precision": "fp16"}),
    "mpi-fp16": ("plain", MPI | {"precision": "fp16", "clip": 0.5}),
    "deepspeed3": ("gpt2-drop", DEEPSPEED3 | {"clip": 0.5}),
    "deepspeed3-bf16": ("plain", DEEPSPEED3 | {"precision": "bf16", "offload": True}),
    "gemini": ("plain", GEMINI | {"clip": 0.5}),
    "tp2": ("gpt2-drop", TP),
    "tp2-fp16": ("gpt2", TP | {"precision": "fp16"}),
    "pp2": ("llama", PP | {"accumulate": 2}),
    "pp2-tied": ("tied", PP),
    "stages2-tied": ("tied", STAGES | {"schedule": "gpipe", "precision": "fp16"}),
    "stages2": ("llama", STAGES | {"schedule": "zero-bubble", "accumulate": 2}),
}


def losses(found: list[dict[str, Any]]) -> list[list[Any]]:
    return [column(found, "loss", rank) for rank in range(len(found))]


@pytest.mark.parametrize("plan", PLANS)
def test_after_a_rollback_the_losses_are_those_of_the_first_time(run_kept, plan: str):
    model, options = PLANS[plan]
    script = {**SAVED, "3": [["lr", 0.1], ["clip", 0.1]], "22": [["rollback", 2]]}
    script["12"] = [["freeze", "^0$|wte|embed_tokens"]]
    found = run_kept(2, TRAIN, model=model, options=options, steps=23, script={**SAVED, "21": [["rollback", None]]})
    assert column(found, "step") == [*range(1, 23), *range(3, 24)]
    for rank in losses(found):
        assert rank[2:22] == rank[22:42], "the 20 steps after the checkpoint, twice"
    assert done_of_rank(found[0], "checkpoint")[-1][:2] == (2, "restored")
    assert done(found)[-1] == (2, "rollback", 2, 22)
    if plan not in (
        "torch",
        "torch-diloco",
        "fsdp",
        "deepspeed",
        "deepspeed3",
        "zero1",
        "gemini",
        "tp2",
        "pp2",
        "stages2",
    ):
        return
    turned = run_kept(2, TRAIN, model=model, options=options, steps=23, script=script)
    assert [rank[2:22] for rank in losses(found)] == [rank[23:43] for rank in losses(turned)], "settings go back too"


@pytest.mark.parametrize(
    "plan",
    [
        *("ddp-noisy", "torch-noisy", "torch-topk", "torch-diloco", "ddp-streaming", "context", "zero1"),
        *("deepspeed", "deepspeed3", "megatron-fp16", "mpi-fp16", "tp2", "pp2", "stages2"),
    ],
)
def test_another_run_goes_on_where_one_was_saved(run_kept, plan: str):
    model, options = PLANS[plan]
    found = run_kept(2, "tests.engine.steered:resumed", model=model, options=options, steps=8)
    for rank in found:
        assert rank["again"]["rows"] == rank["first"]["rows"][4:]


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        ("gpt2", TP, ZERO),
        ("gpt2", PP, TP),
        ("tied", ZERO, TP),
        ("tied", DDP, PP),
        ("tied", PP, ZERO),
        ("tied", ZERO, TORCH),
        ("gpt2", TP, STAGES | {"schedule": "interleaved"}),
        ("tied", STAGES, ZERO),
        ("gpt2", STAGES | {"pp": 1, "micro_batches": 1, "tp": 2}, TP),
        ("tied", TORCH, FSDP),
        ("gpt2", TP, FSDP),
        ("plain", FSDP, ZERO),
        ("tied", TP, DEEPSPEED),
        ("gpt2", DEEPSPEED, FSDP),
        ("tied", TORCH, MPI),
        ("tied", TORCH, MEGATRON),
        ("gpt2", MEGATRON, MEGATRON | {"plugin": "hybrid", "tp": 2}),
        ("gpt2", MEGATRON | {"plugin": "hybrid", "tp": 2}, TP),
        ("tied", TP, MEGATRON | PP),
        ("tied", MEGATRON | PP, MEGATRON),
        ("tied", TP, DEEPSPEED3),
        ("tied", DEEPSPEED3, ZERO),
        ("gpt2", FSDP | {"tp": 2}, TP),
        ("tied", CONTEXT, ZERO),
        ("gpt2", TP, CONTEXT),
        ("plain", TORCH, DDP | {"algorithm": "topk:1"}),  # the whole gradient, in another way
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(entry) for entry in value.values()),
)
def test_another_plan_reads_it(run_kept, model: str, first: dict[str, Any], second: dict[str, Any]):
    found = run_kept(2, "tests.engine.steered:resumed", model=model, options=first, second=second, steps=8)
    begun = [_mean(rank["first"]["rows"] for rank in found), _mean(rank["again"]["rows"] for rank in found)]
    assert begun[1] == pytest.approx(begun[0][4:], abs=2e-5)


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        ("gpt2", ZERO | {"tp": 2}, TP | PP | {"clip": 1e3}),
        ("tied", PP | {"plugin": "zero1"}, ZERO | {"tp": 2, "offload": True}),
        ("tied", FSDP | {"tp": 2}, ZERO | {"tp": 2}),
    ],
    ids=["zero1 tp2", "zero1 pp2", "fsdp tp2"],
)
def test_slices_of_parts_are_read_by_another_plan(run_kept, model: str, first: dict[str, Any], second: dict[str, Any]):
    found = run_kept(4, "tests.engine.steered:resumed", model=model, options=first, second=second, steps=6)
    begun = [_mean(rank["first"]["rows"] for rank in found), _mean(rank["again"]["rows"] for rank in found)]
    assert begun[1] == pytest.approx(begun[0][-len(begun[1]) :], abs=2e-5)
    state = found[0]["first"]
    assert len(state["rows"]) > len(begun[1]) > 0


def test_another_plan_reads_what_gemini_wrote_and_gemini_what_another_wrote(run_kept):
    """In bf16 the losses of the two plans differ by what rounding does, which is less than a step's progress."""
    half = ZERO | {"precision": "bf16"}
    for first, second in ((GEMINI, half), (half, GEMINI)):
        found = run_kept(2, "tests.engine.steered:resumed", model="tied", options=first, second=second, steps=8)
        begun = [_mean(rank["first"]["rows"] for rank in found), _mean(rank["again"]["rows"] for rank in found)]
        assert begun[1] == pytest.approx(begun[0][4:], abs=1e-2)
        assert begun[0][0] - begun[0][4] > 0.05


def _mean(ranks: Any) -> list[float]:
    rows = [[row[1] for row in rank] for rank in ranks]
    steps = [[loss for loss in losses if loss is not None] for losses in zip(*rows, strict=True)]
    return [sum(step) / len(step) for step in steps]


def test_files_are_safetensors_and_json_with_whole_shapes_and_names_of_the_model(run_kept):
    found = run_kept(2, "tests.engine.steered:contents", model="gpt2", options=TP, steps=4, script=SAVED)[0]
    assert found["names"] == sorted(
        ["index.json", *(f"rank-0000{r}.{kind}" for r in (0, 1) for kind in ("json", "safetensors"))]
    )
    tensors = found["tensors"]
    weights = {name: entry["shape"] for name, entry in tensors.items() if name.startswith("weights/")}
    assert weights == {f"weights/{name}": shape for name, shape in found["model"].items()}, "tied ones once"
    fused = tensors["weights/transformer.h.0.attn.c_attn.weight"]
    assert fused["shape"] == [32, 96]
    assert [shard["runs"] for shard in fused["shards"]] == [
        [[0, 16], [32, 16], [64, 16]],
        [[16, 16], [48, 16], [80, 16]],
    ]
    assert tensors["weights/transformer.wte.weight"]["shape"] == [257, 32], "without padding"
    assert {"exp_avg", "exp_avg_sq", "step"} == {
        name.split("/")[2] for name in tensors if name.startswith("optimizer/")
    }
    assert found["pickles"] == []


@pytest.mark.parametrize("late", [False, True])
def test_a_rank_killed_while_it_writes_leaves_the_previous_one(pool, late):
    """While it flushes its tensors for the third time; ``late``: and the others wait for that."""
    options = DDP | {"save_every": 2}
    arguments = {"model": "plain", "options": options, "steps": 9, "dies_at_write": 5, "dies_late": late}
    found = pool.run(2, "tests.engine.steered:killed_writer", lost=(1,), **arguments)[0]
    assert found["failed"], "the peer notices"
    assert found["steps"] == [2, 4], "the third was not finished"
    assert found["left"] == []
    assert found["verified"] == [2, 4]


def test_training_goes_on_while_a_checkpoint_is_written_and_it_holds_its_own_step(run_kept):
    """The disk writes the checkpoint of step 2 after step 4, with what the ranks held after step 2."""
    arguments = {"model": "plain", "options": {"plugin": "zero1", "save_every": 2}, "steps": 5}
    late = run_kept(2, "tests.engine.steered:written_late", until=4, **arguments)
    at_once = run_kept(2, "tests.engine.steered:written_late", until=0, **arguments)
    assert losses(late) == losses(at_once)
    for rank, same in zip(late, at_once, strict=True):
        assert rank["steps"] == [2, 4] and rank["tensors"] == same["tensors"]
    assert [step for step, name, _ in done_of_rank(late[0], "checkpoint") if name == "saved"] == [2, 4]


def test_a_full_disk_is_an_event_and_training_goes_on(run_kept):
    options = DDP | {"save_every": 2, "keep": 1}
    found = run_kept(2, TRAIN, model="gpt2", options=options, steps=7, full_disk_at=4)
    events = done_of_rank(found[0], "checkpoint")
    assert [(step, name) for step, name, _ in events] == [(2, "saved"), (4, "failed"), (6, "saved"), (6, "removed")]
    assert column(found, "step") == [*range(1, 8)] and found[0]["outcome"] == "finished"
    assert "File too large" in events[1][2] or "os error" in events[1][2].lower()


def done_of_rank(rank: dict[str, Any], kind: str) -> list[tuple[Any, ...]]:
    return [(e["step"], e["name"], e["value"]) for e in rank["events"] if e["kind"] == kind]


def test_a_damaged_or_missing_checkpoint_changes_nothing(run_kept):
    script = {**SAVED, "4": [["rollback", 2], ["rollback", 99]]}
    found = run_kept(2, "tests.engine.steered:damaged", model="plain", options=DDP, steps=8, script=script)
    refused = [[e["value"]["reason"] for e in rank["events"] if e["kind"] == "refused"] for rank in found]
    assert all("cannot restore" in rank[0] and "no checkpoint at step 99" in rank[1] for rank in refused)
    assert any("damaged" in rank[0] for rank in refused)
    free = run_kept(2, TRAIN, model="plain", options=DDP, steps=8)
    assert losses(found) == losses(free)


def test_keep_leaves_those_that_were_asked_for(run_kept):
    script = {"2": [["checkpoint", None]]}
    found = run_kept(
        2,
        "tests.engine.steered:kept",
        model="plain",
        options=DDP | {"save_every": 2, "keep": 2},
        steps=9,
        script=script,
    )
    assert found[0]["steps"] == [3, 6, 8]


@pytest.mark.parametrize(
    ("options", "script", "saved"),
    [
        ({}, {}, [5]),
        ({"save_every": 2, "keep": 2}, {}, [4, 5]),
        ({"save_every": 5}, {}, [5]),
        ({"final_checkpoint": False}, {}, []),
        ({}, {"2": [["stop", None]]}, [3]),
        ({}, {"2": [["stop", "checkpoint"]]}, [3]),
        ({}, {"2": [["stop", "no-checkpoint"]]}, []),
        ({"final_checkpoint": False}, {"2": [["stop", "checkpoint"]]}, [3]),
        ({"save_every": 2}, {"2": [["pause", None], ["rollback", 2], ["stop", None]]}, [2]),
    ],
)
def test_a_run_that_ends_has_one_checkpoint_of_its_last_step(
    run_kept, options: dict[str, Any], script: dict[str, Any], saved: list[int]
):
    arguments = {"model": "plain", "options": DDP | {"final_checkpoint": True} | options, "steps": 5, "script": script}
    found = run_kept(2, TRAIN, **arguments)
    written = [step for step, name, _ in done_of_rank(found[0], "checkpoint") if name == "saved"]
    removed = [int(of[-6:]) for _, name, of in done_of_rank(found[0], "checkpoint") if name == "removed"]
    assert sorted(set(written) - set(removed)) == saved
    assert len(written) == len(set(written)), "none is written twice"

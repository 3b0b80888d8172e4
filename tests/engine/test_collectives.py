"""Bytes that ranks exchange, counted while they train, against what each plan must exchange by its closed form.

The model: Llama with L = 4 layers, H = 32, vocabulary 257, in fp32; a batch of B = 8 sequences of T = 16 tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict

import pytest

from tests.engine.frames import columns
from workbench.core.mesh import Mesh, describe_group
from workbench.telemetry.phases import collectives_frame

L, H, B, T, FP32 = 4, 32, 8, 16, 4
BUFFER = 4 * FP32  # rotary frequencies, which DDP broadcasts before each forward pass
NORM = FP32  # a squared norm
STEP = 3  # the pipeline tells shapes in its first step only


def exchanged(results, step: int = STEP) -> dict[tuple[int, str, str], tuple[int, int]]:
    """(rank, kind, group) -> how often, and bytes in all."""
    found: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    frame = collectives_frame(columns(results, "collectives"))
    for row in frame[frame["step"] == step].itertuples():
        found[row.rank, row.kind, row.group].append(row.bytes)
    return {key: (len(sizes), sum(sizes)) for key, sizes in found.items()}


def trained(run_kept, ranks: int = 2, **options):
    """Gradients are watched in every step: what is counted is what the plan must exchange, so watching adds nothing."""
    options |= {"grad_every": 1}
    results = run_kept(ranks, "tests.engine.watched:train", options=options, steps=4, gradients=True)
    assert {row["step"] for row in results[0]["GradientStats"]} == {1, 2, 3, 4}
    return results


def test_ddp_reduces_every_gradient_once(run_kept) -> None:
    results = trained(run_kept, plugin="ddp")
    weights = sum(results[0]["parameters"])
    for rank in (0, 1):
        assert {key: size for key, size in exchanged(results).items() if key[0] == rank} == {
            (rank, "all_reduce", "dp"): (1, weights),
            (rank, "broadcast", "dp"): (1, BUFFER),
        }


@pytest.mark.parametrize(("plugin", "reduction"), [("zero1", "all_reduce"), ("zero2", "reduce_scatter")])
def test_zero_reduces_gradients_and_gathers_weights(run_kept, plugin: str, reduction: str) -> None:
    results = trained(run_kept, plugin=plugin)
    padded = sum(math.ceil(size / FP32 / 2) * 2 * FP32 for size in results[0]["parameters"])
    found = exchanged(results)
    for rank in (0, 1):
        reduced = found[rank, reduction, "dp"][1] - (NORM if plugin == "zero1" else 0)
        assert reduced == padded
        assert found[rank, "all_gather", "dp"][1] == padded


def test_fsdp_gathers_weights_twice_and_scatters_gradients_once(run_kept) -> None:
    """Blocks are gathered for the forward and again for the backward pass; embedding, last norm and head once. The 257
    rows of embedding and head are padded to an even number."""
    results = trained(run_kept, framework="torch", plugin="fsdp")
    block = 4 * H * H + 3 * H * 2 * H + 2 * H
    rest = 2 * 258 * H + H
    for rank in (0, 1):
        assert {key: size for key, size in exchanged(results).items() if key[0] == rank} == {
            (rank, "all_gather", "dp"): (1 + 2 * L, (rest + 2 * L * block) * FP32),
            (rank, "reduce_scatter", "dp"): (1 + L, (rest + L * block) * FP32),
        }


def test_tensor_parallel_reduces_activations(run_kept) -> None:
    """Forward: the embedding, and per layer the outputs of attention and of the MLP. Backward: the inputs of q, k, v,
    gate and up, and of the head. Logits are gathered over the vocabulary, padded to an even size."""
    results = trained(run_kept, plugin="hybrid", tp=2)
    activation = B * T * H * FP32
    count = (1 + 2 * L) + (5 * L + 1)
    for rank in (0, 1):
        assert {key: size for key, size in exchanged(results).items() if key[0] == rank} == {
            (rank, "all_reduce", "tp"): (count, count * activation),
            (rank, "all_gather", "tp"): (1, B * T * 258 * FP32),
        }


def test_dtensor_reduces_activations(run_kept) -> None:
    """Forward: per layer the outputs of attention and of the MLP. Backward: the inputs of q, k, v, gate and up. The 257
    rows of embedding and head are not even, so both are whole."""
    results = trained(run_kept, framework="torch", plugin="fsdp", tp=2)
    activation, count = B * T * H * FP32, 7 * L
    for rank in (0, 1):
        assert {key: size for key, size in exchanged(results).items() if key[0] == rank} == {
            (rank, "all_reduce", "tp"): (count, count * activation),
        }


def test_a_pipeline_sends_activations_on_and_their_gradients_back(run_kept) -> None:
    results = trained(run_kept, plugin="hybrid", pp=2, micro_batches=2)
    message = B // 2 * T * H * FP32
    for rank in (0, 1):
        assert {key: size for key, size in exchanged(results).items() if key[0] == rank} == {
            (rank, "send", "pp"): (2, 2 * message),
            (rank, "recv", "pp"): (2, 2 * message),
        }


SCHEDULES = [("1f1b", 1), ("gpipe", 1), ("interleaved", 3), ("zero-bubble", 3)]


@pytest.mark.parametrize(("schedule", "boundaries"), SCHEDULES)
def test_all_messages_of_torchs_schedules_are_seen(run_kept, schedule: str, boundaries: int) -> None:
    """With two stages a rank, each rank is on both sides of the three boundaries: every micro-batch crosses each of
    them twice, once in each direction, and half of these messages are a rank's own."""
    options = {"framework": "torch", "plugin": "hybrid", "pp": 2, "micro_batches": 2, "schedule": schedule}
    found = exchanged(trained(run_kept, **options))
    message = B // 2 * T * H * FP32
    for rank in (0, 1):
        assert {key: size for key, size in found.items() if key[0] == rank} == {
            (rank, kind, "pp"): (2 * boundaries, 2 * boundaries * message) for kind in ("send", "recv")
        }


def test_replicas_of_torchs_stages_average_every_gradient_once(run_kept) -> None:
    """Beside a number for each parameter, which says whether any of them has a gradient."""
    results = trained(run_kept, ranks=4, framework="torch", plugin="hybrid", pp=2, micro_batches=2)
    found = exchanged(results)
    for rank in range(4):
        sizes = results[rank]["parameters"]
        assert found[rank, "all_reduce", "dp"] == (2, sum(sizes) + len(sizes) * FP32)


def test_groups_of_a_mesh_are_told_apart(run_kept) -> None:
    results = trained(run_kept, ranks=4, plugin="hybrid", tp=2, clip=1.0)
    found = exchanged(results)
    for rank in range(4):
        assert found[rank, "all_reduce", "dp"] == (1, sum(results[rank]["parameters"]))
        assert found[rank, "all_reduce", "world"] == (1, NORM)
        activations = (7 * L + 2) * (B // 2) * T * H * FP32
        # where gradients are watched, Colossal-AI is asked for its own norm too, which is one message more
        assert found[rank, "all_reduce", "tp"][1] == activations + NORM


def test_durations_are_those_of_the_step(run_kept) -> None:
    results = trained(run_kept, plugin="zero1")
    frame = collectives_frame(columns(results, "collectives"))
    steps = columns(results, "steps")
    longest = steps["step_time_ms"].max()
    assert (frame["duration_ms"] > 0).all() and (frame["start_ms"] >= 0).all()
    assert (frame["start_ms"] + frame["duration_ms"] <= longest + 1).all()
    assert (frame["exposed_ms"] <= frame["duration_ms"] + 0.001).all()
    assert (frame["post_ms"] <= frame["duration_ms"]).all()
    assert set(frame["step"]) == {1, 2, 3}, "the first steps always"


def test_names_of_groups() -> None:
    mesh = Mesh(dp=2, pp=2, tp=2)
    assert describe_group([0, 1], mesh) == ("tp", 2)
    assert describe_group([1, 3], mesh) == ("pp", 2)
    assert describe_group([0, 4], mesh) == ("dp", 2)
    assert describe_group([0, 1, 4, 5], mesh) == ("dp+tp", 4)
    assert describe_group(list(range(8)), mesh) == ("world", 8)
    assert describe_group([0, 1, 2], Mesh(dp=3)) == ("dp", 3)
    assert describe_group([0, 2], Mesh(pp=3)) == ("pp", 3), "neighbours of a longer pipeline"

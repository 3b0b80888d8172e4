"""Bytes of collectives against closed forms."""

import pytest

from tests.unit.planner.models import FFN, HIDDEN, LAYERS, TOKENS, VOCAB, job, transformer
from workbench.core.mesh import Coordinates
from workbench.planner.machine import Machine
from workbench.planner.traffic import traffic

BYTES = 4 * (2 * VOCAB * HIDDEN + 2 * LAYERS * HIDDEN * FFN)
HIDDEN_BYTES = 4 * TOKENS * HIDDEN


def sent(text: str, *, pp: int = 0, **changes) -> dict[tuple[str, str], float]:
    model = transformer()
    found = traffic(model, job(text, model, **changes), Coordinates(dp=0, pp=pp, tp=0))
    return {(item.kind, item.axis): item.bytes for item in found}


def test_replicas_reduce_the_gradient_once_a_step():
    assert sent("ddp2") == sent("ddp2", accumulate=4) == {("all_reduce", "dp"): BYTES}
    assert sent("ddp1") == {}


def test_an_algorithm_sends_its_codes():
    shapes = [parameter.shape for parameter in transformer().parameters]
    words = sum(2 * (shape[0] + shape[1]) for shape in shapes)  # all are matrices that rank 2 makes smaller
    assert sent("ddp2:powersgd:2") == {("all_reduce", "dp"): 4 * words}
    signs = sum(-(-shape[0] * shape[1] // 8) + 4 for shape in shapes)
    assert sent("torch ddp4:sign+ef") == {("all_gather", "dp"): 4 * signs}, "all_gather counts what a rank receives"


@pytest.mark.parametrize("ranks", [2, 3])
def test_zero_sends_padded_slices(ranks):
    padded = 4 * sum(ranks * -(-parameter.elements // ranks) for parameter in transformer().parameters)
    assert sent(f"zero1 dp{ranks}") == {("all_reduce", "dp"): padded, ("all_gather", "dp"): padded}
    assert sent(f"zero2 dp{ranks}") == {("reduce_scatter", "dp"): padded, ("all_gather", "dp"): padded}


def test_zero2_reduces_each_piece():
    assert sent("zero2 dp2", accumulate=2)["reduce_scatter", "dp"] == 2 * sent("zero2 dp2")["reduce_scatter", "dp"]


def test_fsdp_gathers_blocks_twice_and_the_rest_once():
    blocks, rest = 4 * 2 * LAYERS * HIDDEN * FFN, 4 * 2 * (VOCAB + 1) * HIDDEN  # 33 rows are sent as 2 x 17
    assert sent("fsdp2") == {("all_gather", "dp"): 2 * blocks + rest, ("reduce_scatter", "dp"): blocks + rest}
    assert sent("fsdp2 no-reshard")["all_gather", "dp"] == blocks + rest
    assert sent("fsdp4 replicate2")["all_reduce", "dp"] == (blocks + rest) / 2


def test_context_parallel_ranks_gather_keys_values_and_outputs():
    keys = LAYERS * 4 * TOKENS * FFN / 2
    model = transformer()
    expected = {
        ("all_gather", "cp"): model.batch_size * (keys + HIDDEN_BYTES),
        ("reduce_scatter", "cp"): model.batch_size * keys,
    }
    assert sent("cp2") == sent("cp2", accumulate=2) == {("all_reduce", "cp"): BYTES, **expected}
    halves = {kind: size / 2 for kind, size in expected.items()}
    assert sent("cp2 dp2") == {("all_reduce", "world"): BYTES, **halves}


def test_tensor_parallel_ranks_sum_twice_a_block_and_gather_the_logits():
    model = transformer()
    samples = model.batch_size
    layers = 2 * LAYERS * HIDDEN_BYTES  # forward of the down projection, backward of the up projection
    assert sent("tp2") == {
        ("all_reduce", "tp"): samples * (layers + 2 * HIDDEN_BYTES),  # and embedding and head
        ("all_gather", "tp"): samples * 4 * TOKENS * (VOCAB + 1),
    }


@pytest.mark.parametrize(("pp", "neighbours"), [(0, 1), (1, 2), (3, 1)])
def test_stages_send_hidden_states_and_their_gradients(pp, neighbours):
    sizes = sent("pp4", pp=pp)
    batch = transformer().batch_size
    assert sizes == {
        ("send", "pp"): neighbours * batch * HIDDEN_BYTES,
        ("recv", "pp"): neighbours * batch * HIDDEN_BYTES,
    }


def machine(**changes) -> Machine:
    values = {"host": "here", "device": "cpu", "ranks": 2, "threads": 1, "date": "2030-01-01T00:00", "flops_per_s": 1e9}
    values |= {"precision": "fp32"}
    values |= {"bytes_per_s": 1e9, "operation_s": 1e-6, "update_s": 1e-5, "latency_s": 1e-3, "link_bytes_per_s": 1e6}
    return Machine(**{**values, **changes})


@pytest.mark.parametrize(
    ("kind", "size", "seconds"),
    [
        ("all_reduce", 4, 6e-3 + 1.5),  # 2 (n-1) messages, 2 (n-1)/n of the bytes
        ("all_gather", 4, 3e-3 + 0.75),
        ("reduce_scatter", 2, 1e-3 + 0.5),
        ("send", 4, 1e-3 + 1.0),
        ("all_reduce", 1, 0.0),
    ],
)
def test_a_message_takes_latency_and_bytes(kind, size, seconds):
    assert machine().message_s(kind, size, 1e6) == pytest.approx(seconds)


def test_a_machine_survives_json():
    alone = machine(ranks=1, latency_s=float("nan"))
    assert Machine.from_json(alone.to_json()).to_json() == alone.to_json()
    assert alone.to_json()["latency_s"] is None
